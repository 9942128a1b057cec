"""Heads of attributes and continuous labels, against scikit-learn, SciPy and training loops written out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import average_precision_score, mean_squared_error

from diffsiam import params, runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import heads, store

CFG = params.Heads(
    attributes_on=("sprites",),
    regression_on=("sprites",),
    epochs=3,
    learning_rate=0.05,
    batch_size=params.HeadBatchSize(attributes=8, regression=8),
    shuffle=True,
    flip=0.5,
    choice=params.HeadChoice(attributes="last", regression="last"),
    bootstrap=20,
    seed=0,
)
ATTRIBUTES, REGRESSION = heads.PROTOCOLS["attributes"], heads.PROTOCOLS["regression"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def with_choice(choice: str, **changes: Any) -> params.Heads:
    return dataclasses.replace(CFG, choice=params.HeadChoice(choice, choice), **changes)


# ----------------------------------------------------------------------------------------------------- metrics
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_of_every_draw_is_scikit_learns(rng: np.random.Generator, ties: bool) -> None:
    y = (rng.random((60, 3)) < (0.1, 0.5, 0.9)).astype(np.uint8)
    prediction = rng.normal(size=(60, 3)).round(0 if ties else 9).astype(np.float32)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=10)
    found = heads.average_precisions(y, prediction, counts.astype(np.float32))
    theirs = [[average_precision_score(y[:, a], prediction[:, a], sample_weight=n) for a in range(3)] for n in counts]
    np.testing.assert_allclose(found, 100 * np.array(theirs), rtol=1e-5)


def test_average_precision_is_the_share_for_a_constant_prediction_and_undefined_without_a_positive() -> None:
    y = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], np.uint8)
    found = heads.average_precisions(y, np.full((4, 2), 0.3), np.ones((1, 4)))
    assert found[0, 0] == 25
    assert np.isnan(found[0, 1])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_correlation_and_squared_error_of_every_draw_are_those_of_the_repeated_images(
    rng: np.random.Generator, offset: float
) -> None:
    y, noise = rng.normal(size=(2, 50, 4)) + offset
    prediction = y + 0.5 * noise
    counts = rng.multinomial(50, np.full(50, 1 / 50), size=5)
    r, mse = (metric(y, prediction, counts.astype(np.float32)) for metric in REGRESSION.metrics.values())
    for b, n in enumerate(counts):
        ours, theirs = np.repeat(y, n, axis=0), np.repeat(prediction, n, axis=0)
        expected = [scipy.stats.pearsonr(ours[:, t], theirs[:, t]).statistic for t in range(4)]
        np.testing.assert_allclose(r[b], expected, rtol=1e-6)
        np.testing.assert_allclose(mse[b], mean_squared_error(ours, theirs, multioutput="raw_values"), rtol=1e-6)


def test_a_constant_prediction_correlates_with_nothing(rng: np.random.Generator) -> None:
    y = rng.normal(size=(30, 2))
    constant = np.broadcast_to(y.mean(axis=0), y.shape)
    assert heads.correlations(y, constant, np.ones((1, 30))).tolist() == [[0, 0]]
    np.testing.assert_allclose(heads.squared_errors(y, constant, np.ones((1, 30)))[0], y.var(axis=0))


# ---------------------------------------------------------------------------------------------------- training
def by_hand(
    protocol: heads.Protocol, x: np.ndarray, mirrored: np.ndarray | None, y: np.ndarray, cfg: params.Heads
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and bias after each epoch: gradients and Adam by their formulas, image by image."""
    draws = torch.empty(x.shape[1] * y.shape[1] + y.shape[1])
    start = draws.uniform_(-1, 1, generator=runtime.generator(cfg.seed, "heads/weights")).numpy() / x.shape[1] ** 0.5
    theta = start.astype(np.float64)
    m, v, step, out = np.zeros_like(theta), np.zeros_like(theta), 0, []
    for epoch in range(cfg.epochs):
        order = torch.randperm(len(x), generator=runtime.generator(cfg.seed, "heads/order", epoch)).tolist()
        chance = torch.rand(len(x), generator=runtime.generator(cfg.seed, "heads/flip", epoch)).tolist()
        for begin in range(0, len(x), 8):
            batch = order[begin : begin + 8]
            gradient = np.zeros_like(theta)
            for i in batch:
                z = mirrored[i] if mirrored is not None and chance[i] < cfg.flip else x[i]
                weight, bias = theta[: -y.shape[1]].reshape(y.shape[1], -1), theta[-y.shape[1] :]
                out_i = weight @ z + bias
                slope = 1 / (1 + np.exp(-out_i)) - y[i] if protocol is ATTRIBUTES else 2 * (out_i - y[i])
                gradient += np.concatenate([np.outer(slope, z).ravel(), slope]) / (len(batch) * y.shape[1])
            step += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            theta = theta - cfg.learning_rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        out.append((theta[: -y.shape[1]].reshape(y.shape[1], -1), theta[-y.shape[1] :]))
    return out


@pytest.mark.parametrize("name", heads.PROTOCOLS)
def test_training_follows_the_gradient_and_adam_written_out(rng: np.random.Generator, name: str) -> None:
    protocol = heads.PROTOCOLS[name]
    x = rng.normal(size=(20, 5)).astype(np.float32)  # 8, 8 and 4 images a step
    mirrored = rng.normal(size=(20, 5)).astype(np.float32) if name == "attributes" else None
    y = (rng.random((20, 3)) < 0.4).astype(np.uint8) if name == "attributes" else rng.normal(size=(20, 3))
    expected = by_hand(protocol, x, mirrored, y, CFG)
    made = [
        (head.weight.detach().numpy().copy(), head.bias.detach().numpy().copy())
        for head, _ in heads.epochs(x, mirrored, y, protocol, CFG)
    ]
    assert len(made) == len(expected) == 3
    for (weight, bias), (theirs, their_bias) in zip(made, expected, strict=True):
        np.testing.assert_allclose(weight, theirs, atol=2e-5)
        np.testing.assert_allclose(bias, their_bias, atol=2e-5)


def test_without_shuffling_the_images_come_in_the_order_of_the_files(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 2)).astype(np.float32)
    cfg = dataclasses.replace(CFG, shuffle=False, epochs=1)
    ((_head, loss),) = heads.epochs(x, None, y, REGRESSION, cfg)
    (first, second) = (slice(0, 8), slice(8, 16))
    ((halfway, early),) = heads.epochs(x[first], None, y[first], REGRESSION, cfg)
    late = np.mean((heads.predict(halfway, x[second]) - y[second]) ** 2)
    assert loss == pytest.approx((early + late) / 2, rel=1e-5)


def test_the_loss_of_an_epoch_is_the_mean_over_its_images(rng: np.random.Generator) -> None:
    """Of 8, 8 and 4 of them, while the head stands still."""
    x, y = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(20, 2)).astype(np.float32)
    ((head, loss),) = heads.epochs(x, None, y, REGRESSION, dataclasses.replace(CFG, learning_rate=1e-12, epochs=1))
    assert loss == pytest.approx(np.mean((heads.predict(head, x) - y) ** 2), rel=1e-5)


def test_of_epochs_that_do_equally_well_the_first_is_taken(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(20, 4)).astype(np.float32), np.ones((20, 2), np.uint8)
    epoch, curve, _ = heads.choose(x, None, y, (x, y), ATTRIBUTES, CFG, "attributes")
    assert (epoch, [entry["score"] for entry in curve]) == (1, [100, 100, 100])


def test_regression_never_mirrors(rng: np.random.Generator) -> None:
    """Coordinates change with the image."""
    x, y = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 2)).astype(np.float32)
    cfg = dataclasses.replace(CFG, flip=1.0, epochs=1)
    ((plain, _),) = heads.epochs(x, None, y, REGRESSION, cfg)
    ((same, _),) = heads.epochs(x, -x, y, REGRESSION, cfg)
    assert torch.equal(plain.weight, same.weight)


# ------------------------------------------------------------------------------------------------------ results
def stored(folder: Path, rng: np.random.Generator, n: int = 80, n_test: int = 40) -> tuple[Path, Path]:
    """Features and a data set whose labels, of both kinds, are linear in them."""
    weight = rng.normal(size=(6, 3))
    x, x_test = (rng.normal(size=(count, 6)).astype(np.float32) for count in (n, n_test))
    data = folder / "data"
    data.mkdir()
    for part, features in (("train", x), ("test", x_test)):
        targets = (features @ weight + 2).astype(np.float32)
        np.save(data / f"targets_{part}.npy", targets)
        np.save(data / f"attributes_{part}.npy", (targets > 2).astype(np.uint8))
        np.save(data / f"images_{part}.npy", rng.integers(0, 256, (len(features), 8, 8, 3), np.uint8))
    meta = {"dataset": "sprites", "classes": ["a"], "metric": "accuracy", "counts": {"train": n, "test": n_test}}
    meta |= {"splits": {"val": list(range(20))}, "attributes": ["A", "B", "C"], "targets": ["a", "b", "c"]}
    (data / "meta.json").write_text(json.dumps(meta))
    zeros = np.zeros(n, np.int64), np.zeros(n_test, np.int64)
    store.write(folder / "z.npz", x, zeros[0], x_test, zeros[1])
    return data, folder / "z.npz"


def result(protocol: str, data: Path, cfg: params.Heads, features: Path | None) -> dict[str, Any]:
    method, out = "pdae" if features else "pixels", data / "result.json"
    heads.run(protocol, data, cfg, out, features=features, method=method, seed=0 if features else None)
    return runtime.read_json(out)


def test_planted_linear_labels_are_found(tmp_path: Path, rng: np.random.Generator) -> None:
    data, features = stored(tmp_path, rng)
    cfg = dataclasses.replace(CFG, epochs=100)
    found = result("regression", data, cfg, features)
    assert found["metrics"]["r"]["value"] == pytest.approx(1, abs=1e-4)
    assert found["metrics"]["mse"]["value"] < 1e-3
    y = np.load(data / "targets_test.npy")
    train_mean = np.load(data / "targets_train.npy").mean(axis=0)
    assert found["floor"] == {"r": 0, "mse": pytest.approx(((y - train_mean) ** 2).mean(), rel=1e-5)}
    found = result("attributes", data, cfg, features)
    assert found["metrics"]["ap"]["value"] > 99
    assert found["floor"]["ap"] == pytest.approx(100 * np.load(data / "attributes_test.npy").mean(), rel=1e-5)
    assert len(found["metrics"]["ap"]["draws"]) == CFG.bootstrap


def test_the_interval_is_half_the_percentiles_width_of_the_draws(tmp_path: Path, rng: np.random.Generator) -> None:
    data, features = stored(tmp_path, rng)
    score = result("attributes", data, CFG, features)["metrics"]["ap"]
    low, high = np.percentile(score["draws"], [2.5, 97.5])
    assert score["ci95"] == pytest.approx((high - low) / 2, rel=1e-4)
    assert low < score["value"] < high
    assert score["value"] == pytest.approx(np.mean(score["by_label"]))


def test_validation_images_choose_the_epoch_and_are_not_trained_on(tmp_path: Path, rng: np.random.Generator) -> None:
    data, features = stored(tmp_path, rng)
    before = result("attributes", data, with_choice("val", epochs=1), features)
    labels = np.load(data / "attributes_train.npy")
    labels[:20] = 1 - labels[:20]
    np.save(data / "attributes_train.npy", labels)
    after = result("attributes", data, with_choice("val", epochs=1), features)
    assert (before["n_train"], before["choice"]) == (60, "val")
    assert after["metrics"] == before["metrics"]
    assert after["curve"][0]["score"] != before["curve"][0]["score"]


@pytest.mark.parametrize("choice", ["last", "best_test"])
def test_other_choices_train_on_all_and_only_the_leaky_one_looks_at_the_test_images(
    tmp_path: Path, rng: np.random.Generator, choice: str
) -> None:
    data, features = stored(tmp_path, rng)
    labels = np.load(data / "attributes_test.npy")
    np.save(data / "attributes_test.npy", 1 - labels)  # the longer it is trained, the worse
    found = result("attributes", data, with_choice(choice, epochs=8), features)
    assert found["n_train"] == 80
    scores = [entry["score"] for entry in found["curve"]]
    if choice == "last":
        assert (found["epoch"], set(scores)) == (8, {None})
    else:
        assert found["epoch"] == 1 + int(np.argmax(scores)) < 8
        assert found["metrics"]["ap"]["value"] == pytest.approx(max(scores), rel=1e-5)


def test_draws_depend_on_the_images_alone_and_not_on_the_block_that_they_come_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = np.concatenate([*heads.drawn(30, 7, 0, "CelebA")])
    monkeypatch.setattr(heads, "_BLOCK", 60)
    blocks = [*heads.drawn(30, 7, 0, "CelebA")]
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    assert np.array_equal(np.concatenate(blocks), whole)
    assert set(whole.sum(axis=1)) == {30}
    assert len({tuple(row) for row in whole}) == 7
    assert not np.array_equal(np.concatenate([*heads.drawn(30, 7, 0, "LFW")]), whole)


def test_the_floor_of_the_pixels_is_a_head_on_the_images_and_their_mirror_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data, _ = stored(tmp_path, rng)
    meta = runtime.read_json(data / "meta.json") | {"dataset": "CelebA"}
    (data / "meta.json").write_text(json.dumps(meta))
    images = {part: np.load(data / f"images_{part}.npy") for part in ("train", "test")}
    images["mirrored"] = images["train"][:, :, ::-1]
    flat = {part: (array.reshape(len(array), -1) / 127.5 - 1).astype(np.float32) for part, array in images.items()}
    zeros = np.zeros(80, np.int64), np.zeros(40, np.int64)
    store.write(tmp_path / "f.npz", flat["train"], zeros[0], flat["test"], zeros[1], mirrored=flat["mirrored"])
    for protocol, metric in (("regression", "mse"), ("attributes", "ap")):
        floor, head = result(protocol, data, CFG, None), result(protocol, data, CFG, tmp_path / "f.npz")
        assert floor["metrics"][metric]["value"] == pytest.approx(head["metrics"][metric]["value"], rel=1e-3)
        assert (floor["method"], floor["seed"]) == ("pixels", None)


def test_pixels_are_averaged_to_sixteen(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(images).float().permute(0, 3, 1, 2), 4)
    expected = pooled.permute(0, 2, 3, 1).reshape(3, -1) / 127.5 - 1
    np.testing.assert_allclose(heads.pixel_features(images), expected, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- refusals
def test_a_data_set_without_such_labels_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    data, features = stored(tmp_path, rng)
    meta = runtime.read_json(data / "meta.json")
    del meta["targets"]  # as data sets were prepared before there were any
    (data / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="sprites has no continuous labels"):
        result("regression", data, CFG, features)
    assert result("attributes", data, CFG, features)["n_test"] == 40


def test_where_mirror_images_have_the_same_attributes_their_features_are_needed(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data, features = stored(tmp_path, rng)
    meta = runtime.read_json(data / "meta.json") | {"dataset": "CelebA"}
    (data / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"--mirror`, or set heads.flip to 0"):
        result("attributes", data, CFG, features)
    plain = result("attributes", data, dataclasses.replace(CFG, flip=0.0), features)
    found = store.read(features, data / "meta.json")
    arrays = found.train, found.train_labels, found.test, found.test_labels
    store.write(features, *arrays, mirrored=found.train)  # of images that are their own mirror images
    assert result("attributes", data, CFG, features)["metrics"] == plain["metrics"]


def test_an_attribute_that_no_test_image_has_is_named_and_left_out(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    data, features = stored(tmp_path, rng)
    labels = np.load(data / "attributes_test.npy")
    labels[:, 1] = 0
    np.save(data / "attributes_test.npy", labels)
    score = result("attributes", data, CFG, features)["metrics"]["ap"]
    assert score["by_label"][1] is None
    assert score["value"] == pytest.approx(np.mean([score["by_label"][0], score["by_label"][2]]))
    assert "no test image has B; left out" in capsys.readouterr().err
    np.save(data / "attributes_test.npy", 0 * labels)
    with pytest.raises(UserError, match="no test image has any of the attributes"):
        result("attributes", data, CFG, features)


def test_an_encoder_has_features_and_the_pixels_have_none(tmp_path: Path, rng: np.random.Generator) -> None:
    data, features = stored(tmp_path, rng)
    for method, given in (("pdae", None), ("pixels", features)):
        with pytest.raises(UserError, match="--method pixels is the floor"):
            heads.run("attributes", data, CFG, data / "o.json", features=given, method=method, seed=0)


def test_labels_of_another_size_and_a_training_that_diverges_are_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data, features = stored(tmp_path, rng)
    with pytest.raises(UserError, match=r"diverges at heads.learning_rate = 1e\+30"):
        result("regression", data, dataclasses.replace(CFG, learning_rate=1e30), features)
    assert not (data / "result.json").exists()
    np.save(data / "targets_test.npy", np.zeros((40, 2), np.float32))
    with pytest.raises(UserError, match=r"targets_test.npy: shape \(40, 2\); needed are \(40, 3\)"):
        result("regression", data, CFG, features)


def test_validation_images_without_any_attribute_cannot_choose(tmp_path: Path, rng: np.random.Generator) -> None:
    data, features = stored(tmp_path, rng)
    labels = np.load(data / "attributes_train.npy")
    labels[:20] = 0
    np.save(data / "attributes_train.npy", labels)
    with pytest.raises(UserError, match=r"attributes of pdae on sprites: of the images that choose"):
        result("attributes", data, with_choice("val"), features)
