"""Row ``frozen_dm``: block and level are chosen on validation images, and the encoder is stored like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.grid import Grid
from diffsiam.diffusion import frozen as diffusion
from diffsiam.diffusion.schedule import Schedule
from diffsiam.errors import UserError
from diffsiam.evaluation import features, frozen
from diffsiam.params import FrozenDm, Runtime
from tests.training import tiny

LEVELS = (1, 300)
META = {"dataset": "stripes", "classes": ["a", "b"], "metric": "accuracy", "attributes": []}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and light, that any block tells apart where noise does not drown them."""
    folder = tiny.data(tmp_path_factory.mktemp("frozen") / "stripes")
    labels = np.arange(tiny.IMAGES) % 2
    images = (tiny.images() // 8 + (labels * 200)[:, None, None, None]).astype(np.uint8)
    np.save(folder / "images_train.npy", images)
    np.save(folder / "labels_train.npy", labels)
    np.save(folder / "attributes_train.npy", np.stack([labels, 1 - labels], axis=1).astype(np.int8))
    sums = {"images_train.npy": runtime.sha256(folder / "images_train.npy")}
    facts = {"image_size": tiny.SIDE, "sha256": sums, "splits": {"val": list(range(0, tiny.IMAGES, 3))}}
    runtime.write_json(folder / "meta.json", META | facts)
    return folder


def run(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    cfg = tiny.section(FrozenDm, **{"levels": list(LEVELS), **changes})
    dm = tiny.saved_diffusion_model(out.parent / "dm")
    frozen.run(cfg, tiny.section(Runtime), data, dm, out, seed=2, root=out)
    found: dict[str, Any] = runtime.read_json(out / "config.json")
    return found


def test_the_best_pair_on_validation_images_is_stored_and_loads_as_an_encoder(data: Path, tmp_path: Path) -> None:
    record = run(data, tmp_path / "out")
    scores = np.array(record["grid"]["scores"])
    assert scores.shape == (4, 2)
    assert scores.max() == scores[record["block"] - 1, LEVELS.index(record["level"])] == 100
    assert record["grid"]["widths"][record["block"] - 1] == record["dim"]
    assert (tmp_path / "out/history.csv").read_text() == "step,loss\n"
    model, side = features.load_encoder(tmp_path / "out/encoder.safetensors")
    assert side == tiny.SIDE
    images = np.load(data / "images_train.npy")
    z = features.extract(model, images, 7, torch.device("cpu"))
    expected = frozen.extract(tiny.diffusion_model(), torch.from_numpy(images), record["level"], 2)
    np.testing.assert_allclose(z, expected[record["block"] - 1], atol=1e-5)
    twin, _ = features.load_encoder(tmp_path / "out/encoder_ema.safetensors")
    x = pixels.to_float(torch.from_numpy(images))
    assert torch.equal(twin(x), model(x))


def test_a_given_pair_is_taken_unasked(data: Path, tmp_path: Path) -> None:
    record = run(data, tmp_path / "out", block=3, level=77)
    assert (record["block"], record["level"], record["grid"]) == (3, 77, None)
    with pytest.raises(UserError, match=r"block: met 5, but the way up of .* has 4 blocks. Choose 1 to 4"):
        run(data, tmp_path / "more", block=5, level=77)
    assert not (tmp_path / "more").exists()


def test_the_choice_is_by_the_metric_of_the_data_set() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(400) < 100).astype(np.int64)
    validation = np.arange(0, 400, 4)
    told, noise = np.c_[labels + rng.normal(0, 0.1, 400), rng.normal(size=400)], rng.normal(size=(400, 2))
    assert frozen.score(told.astype(np.float32), labels, validation, "accuracy") == 100
    assert frozen.score(noise.astype(np.float32), labels, validation, "accuracy") == 75  # says the larger class
    assert frozen.score(noise.astype(np.float32), labels, validation, "mean_per_class") == 50


def test_the_score_is_scikit_learns_of_a_ridge_fitted_on_the_standardised_other_rows() -> None:
    rng = np.random.default_rng(1)
    labels, validation = rng.integers(0, 3, 120), np.arange(0, 120, 3)
    z = (rng.normal(size=(120, 30)) * np.geomspace(1e-4, 100, 30) + 1).astype(np.float32)
    z[:, :3] += 2e-4 * np.eye(3, dtype=np.float32)[labels]  # of the smallest numbers
    fit = np.setdiff1d(np.arange(120), validation)
    x = (z - z[fit].mean(axis=0, dtype=np.float64)) / z[fit].std(axis=0, dtype=np.float64)
    probe = RidgeClassifierCV(np.geomspace(1e-3, 1e5, 9)).fit(x[fit], labels[fit])
    expected = 100 * probe.score(x[validation], labels[validation])
    assert 50 < expected < 95
    assert frozen.score(z, labels, validation, "accuracy") == pytest.approx(expected)


def test_every_block_at_every_level_has_the_mean_score_of_its_own_noised_features(data: Path) -> None:
    images, validation = torch.from_numpy(np.load(data / "images_train.npy")), np.arange(0, tiny.IMAGES, 3)
    rng = np.random.default_rng(2)
    labels, dm = [rng.integers(0, 2, tiny.IMAGES) for _ in range(2)], tiny.diffusion_model()
    found = frozen.grid(dm, images, labels, validation, "accuracy", (300, 1), 3)
    expected = np.zeros((4, 2))
    for place, level in enumerate((300, 1)):
        features = diffusion.features(dm, Schedule(), pixels.to_float(images), level, 3)
        for block, z in enumerate(features):
            each = [frozen.score(z.numpy(), known, validation, "accuracy") for known in labels]
            expected[block, place] = (each[0] + each[1]) / 2
    assert len(np.unique(expected)) > 2
    np.testing.assert_allclose(found, expected)


def test_the_place_of_the_largest_score_is_taken(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([[50.0, 60.0], [95.0, 70.0], [90.0, 80.0], [40.0, 85.0]])
    monkeypatch.setattr(frozen, "grid", lambda *_: scores)
    record = run(data, tmp_path / "out", levels=[300, 1])
    assert (record["block"], record["level"], record["grid"]["scores"]) == (2, 300, scores.tolist())
    model, _ = features.load_encoder(tmp_path / "out/encoder.safetensors")
    assert model(torch.zeros(1, 3, tiny.SIDE, tiny.SIDE)).shape == (1, record["dim"])


def test_it_is_chosen_by_classes_by_factors_or_by_attributes_whichever_there_are(data: Path) -> None:
    for known in ("accuracy", "mean_per_class"):
        (labels,), metric = frozen.told(data, META | {"metric": known})
        assert (labels.tolist(), metric) == ((np.arange(tiny.IMAGES) % 2).tolist(), known)
    sizes = {"names": ["hue", "size"], "sizes": [4, 5]}
    factors, metric = frozen.told(data, META | {"classes": ["all"], "grid": sizes})
    assert np.array_equal(np.stack(factors, 1), Grid.of({"grid": sizes}).factors(np.arange(20)))
    assert metric == "mean_per_class"
    attributes, metric = frozen.told(data, META | {"classes": [], "attributes": ["dark", "light"]})
    assert ([a.tolist()[:3] for a in attributes], metric) == ([[0, 1, 0], [1, 0, 1]], "mean_per_class")
    with pytest.raises(UserError, match=r"neither classes, factors nor attributes.*frozen_dm.block"):
        frozen.told(data, META | {"classes": []})
