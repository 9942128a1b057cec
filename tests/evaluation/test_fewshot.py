from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsiam import params
from diffsiam.errors import UserError
from diffsiam.evaluation import fewshot, store
from tests.evaluation import sgd_loop

PROTOCOL = params.FewShot(
    ways=5,
    shots=(1, 5, 10),
    queries=15,
    episodes=200,
    epochs=100,
    batch_size=4,
    learning_rate=0.01,
    momentum=0.9,
    dampening=0.9,
    weight_decay=0.001,
    normalize="none",
    seed=0,
)
QUICK = dataclasses.replace(PROTOCOL, epochs=3, episodes=12)


def clusters(classes: int = 8, images: int = 30, dim: int = 64, noise: float = 2.0, seed: int = 0):
    """Non-negative features around one centre per class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), images)
    x = rng.normal(size=(classes, dim))[labels] + noise * rng.normal(size=(len(labels), dim))
    return np.maximum(x, 0).astype(np.float32), labels


def disagreements(features, labels, cfg, episodes) -> tuple[int, int]:
    """Queries that the solver and the loop classify differently, ties (gap below 1e-9) aside, and ties."""
    drawn = fewshot.episodes(labels, cfg, "clusters")
    predicted = fewshot.predict(features, drawn, cfg, "clusters")
    wrong = ties = 0
    for shots in cfg.shots:
        scores = sgd_loop.together(features, drawn, cfg, "clusters", shots, episodes)
        top = scores.topk(2, dim=2).values
        tie = (top[..., 0] - top[..., 1] < 1e-9).numpy()
        differs = scores.argmax(dim=2).numpy() != predicted[shots][list(episodes)].reshape(tie.shape)
        wrong += int((differs & ~tie).sum())
        ties += int(tie.sum())
    return wrong, ties


def test_every_prediction_equals_the_torch_loop():
    features, labels = clusters()
    assert disagreements(features, labels, PROTOCOL, (0, 150)) == (0, 0)


@pytest.mark.parametrize("shots", [1, 3])
def test_episodes_side_by_side_are_what_the_plain_loop_makes_of_each(shots):
    features, labels = clusters(dim=33)
    drawn = fewshot.episodes(labels, QUICK, "clusters")
    found = sgd_loop.together(features, drawn, QUICK, "clusters", shots, (7, 2))
    for scores, episode in zip(found, (7, 2), strict=True):
        alone = sgd_loop.scores(features, drawn, QUICK, "clusters", shots, episode)
        assert torch.allclose(scores, alone, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_every_prediction_of_200_episodes_equals_the_torch_loop_at_512_dimensions():
    features, labels = clusters(classes=20, dim=512, noise=4.0)
    wrong, ties = disagreements(features, labels, PROTOCOL, range(200))
    assert wrong == 0
    assert ties < 5


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 1},
        {"batch_size": 6},
        {"batch_size": 64},
        {"momentum": 0.0},
        {"dampening": 0.0},
        {"dampening": 1.0},
        {"weight_decay": 0.0, "learning_rate": 0.1},
        {"weight_decay": 2.0, "dampening": 0.5},
        {"weight_decay": 9.0},
        {"ways": 7, "shots": (3, 11), "batch_size": 9},
    ],
    ids=str,
)
def test_other_settings_equal_the_torch_loop_too(change):
    features, labels = clusters(dim=33)
    assert disagreements(features, labels, dataclasses.replace(QUICK, **change), range(3)) == (0, 0)


def test_near_ties_are_decided_as_in_float64():
    """Classes that are shifted by a few units in the last place of float32 lead to very close scores."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 25)
    features = (1 + 1e-6 * rng.normal(size=(125, 96))).astype(np.float32)
    wrong, ties = disagreements(features, labels, dataclasses.replace(QUICK, episodes=20), range(20))
    assert wrong == 0
    assert ties < 100


def test_initial_weights_are_those_of_nn_linear_in_range_and_spread():
    weights = np.stack([fewshot.initial_weights(PROTOCOL, "clusters", e, 64) for e in range(50)])
    bound = 64**-0.5
    layer = torch.nn.Linear(64, 5)
    assert np.abs(weights).max() <= bound
    assert layer.weight.abs().max() <= bound  # the bound is PyTorch's own
    assert np.isclose(weights.std(), bound / 3**0.5, rtol=0.02)
    assert abs(weights.mean()) < 0.01 * bound * 3


def test_batch_order_is_a_new_permutation_each_epoch():
    order = fewshot.batch_order(PROTOCOL, "clusters", 5, episode=3)
    assert (np.sort(order, axis=1) == np.arange(25)).all()
    assert len(np.unique(order, axis=0)) == PROTOCOL.epochs
    assert abs(order[:, 0].mean() - 12) < 3


def test_the_order_is_drawn_anew_for_every_number_of_shots_data_set_and_episode():
    drawn = [("clusters", 5, 3), ("clusters", 6, 3), ("others", 5, 3), ("clusters", 5, 4)]
    keys = {int(fewshot._order_keys(PROTOCOL, dataset, shots)[episode]) for dataset, shots, episode in drawn}
    assert len(keys) == 4


def test_episodes_are_disjoint_nested_and_of_the_drawn_classes():
    _, labels = clusters()
    drawn = fewshot.episodes(labels, PROTOCOL, "clusters")
    images = np.concatenate([drawn.support, drawn.query], axis=2)
    assert (labels[images] == drawn.classes[:, :, None]).all()
    assert all(len(np.unique(episode)) == episode.size for episode in images)
    fewer = fewshot.episodes(labels, dataclasses.replace(PROTOCOL, shots=(1, 5)), "clusters")
    assert (fewer.query == drawn.query).all()
    assert (fewer.support == drawn.support[:, :, :5]).all()
    assert len(np.unique(drawn.classes[:, 0])) == 8  # every class gets its turn in every place


def test_another_dataset_or_seed_draws_other_episodes():
    _, labels = clusters()
    one = fewshot.episodes(labels, PROTOCOL, "clusters").query
    assert (fewshot.episodes(labels, PROTOCOL, "other").query != one).any()
    assert (fewshot.episodes(labels, dataclasses.replace(PROTOCOL, seed=1), "clusters").query != one).any()


def test_results_depend_neither_on_the_number_of_episodes_nor_on_blocks(monkeypatch):
    features, labels = clusters()

    def predict(count: int) -> dict[int, np.ndarray]:
        cfg = dataclasses.replace(QUICK, episodes=count)
        return fewshot.predict(features, fewshot.episodes(labels, cfg, "clusters"), cfg, "clusters")

    whole = predict(70)
    monkeypatch.setattr(fewshot, "BLOCK", 7)
    part = predict(33)
    for shots in QUICK.shots:
        assert (whole[shots][:33] == part[shots]).all()


def accuracy(features, labels, **change) -> float:
    cfg = dataclasses.replace(PROTOCOL, **({"shots": (5,), "episodes": 1000, "epochs": 20} | change))
    drawn = fewshot.episodes(labels, cfg, "clusters")
    predicted = fewshot.predict(features, drawn, cfg, "clusters")[5]
    return 100 * (predicted == np.arange(cfg.ways)[:, None]).mean()


def test_relabelled_classes_and_rotated_features_keep_the_accuracy_within_the_interval():
    features, labels = clusters(noise=3.0)
    base = accuracy(features, labels)
    half_width = 0.6  # 1.96 * 9 / sqrt(1000): 9 points is the spread between episodes
    rng = np.random.default_rng(1)
    assert 35 < base < 85
    assert abs(accuracy(features, rng.permutation(8)[labels]) - base) < 2 * half_width
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    assert abs(accuracy((features @ rotation).astype(np.float32), labels) - base) < 2 * half_width
    shuffled = rng.permutation(len(labels))
    assert abs(accuracy(features[shuffled], labels[shuffled]) - base) < 2 * half_width


def test_constant_features_give_exactly_chance():
    _, labels = clusters()
    assert accuracy(np.ones((len(labels), 16), np.float32), labels) == 20.0


def test_a_class_with_one_image_too_few_takes_no_part():
    labels = np.repeat(np.arange(7), [25, 24, 25, 26, 25, 0, 25])
    drawn = fewshot.episodes(labels, PROTOCOL, "clusters")
    assert drawn.usable == 5
    assert set(np.unique(drawn.classes)) == {0, 2, 3, 4, 6}


def test_too_few_usable_classes_names_the_data_set_and_the_shots_that_would_work():
    labels = np.repeat(np.arange(6), [25, 22, 25, 23, 21, 20])
    with pytest.raises(UserError, match=r"few-shot on Cars.*2 of 6 classes.*number of shots that works is 6"):
        fewshot.episodes(labels, PROTOCOL, "Cars")
    works = dataclasses.replace(PROTOCOL, shots=(6,))
    assert fewshot.episodes(labels, works, "Cars").usable == 5
    with pytest.raises(UserError, match=r"works is 0: lower fewshot.queries \(now 15\)"):
        fewshot.episodes(np.repeat(np.arange(6), 10), PROTOCOL, "Cars")


def test_run_writes_accuracy_spread_and_counts(tmp_path):
    features, labels = clusters()
    cfg = dataclasses.replace(QUICK, episodes=40)
    store.write(tmp_path / "f.npz", features[:16], labels[:16], features, labels)
    meta = {
        "dataset": "clusters",
        "classes": [str(i) for i in range(8)],
        "metric": "accuracy",
        "counts": {"train": 16, "test": len(labels)},
        "splits": {"val": [0, 1]},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    for name in "ab":
        fewshot.run(tmp_path / "f.npz", tmp_path / "meta.json", cfg, tmp_path / name, method="simsiam", seed=2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    result = json.loads((tmp_path / "a").read_text())
    assert {k: result[k] for k in ("method", "dataset", "seed", "ways", "queries", "episodes", "usable_classes")} == {
        "method": "simsiam", "dataset": "clusters", "seed": 2, "ways": 5, "queries": 15, "episodes": 40,
        "usable_classes": 8,
    }  # fmt: skip
    assert list(result["shots"]) == ["1", "5", "10"]
    for entry in result["shots"].values():
        per_episode = 100 * np.array(entry["correct"]) / 75
        assert len(per_episode) == 40
        assert entry["accuracy"] == pytest.approx(per_episode.mean())
        assert entry["std"] == pytest.approx(per_episode.std())
        assert entry["ci95"] == pytest.approx(1.96 * per_episode.std() / 40**0.5)


def result_of(folder, features, labels, cfg) -> dict:
    """Of the command's work on ``features``, whose first rows are the train images."""
    facts = {"dataset": "clusters", "classes": [str(i) for i in range(8)], "metric": "accuracy"}
    counts = {"counts": {"train": 16, "test": len(labels)}, "splits": {"val": [0, 1]}}
    folder.mkdir(exist_ok=True)
    store.write(folder / "f.npz", features[:16], labels[:16], features, labels)
    (folder / "meta.json").write_text(json.dumps(facts | counts))
    fewshot.run(folder / "f.npz", folder / "meta.json", cfg, folder / "r.json", method="m", seed=0)
    return json.loads((folder / "r.json").read_text())


def test_with_one_norm_accuracies_do_not_depend_on_the_scale(tmp_path):
    features, labels = clusters(noise=1.0)
    norm = np.linalg.norm(features[:16].astype(np.float64), axis=1).mean()
    cfg = {kind: dataclasses.replace(QUICK, episodes=40, normalize=kind) for kind in ("none", "norm")}
    scaled = {
        (kind, scale): result_of(tmp_path, (features * scale).astype(np.float32), labels, cfg[kind])
        for kind in cfg
        for scale in (0.125, 1.0, 8.0)
    }
    by_hand = result_of(tmp_path, (features * (fewshot.NORM / norm)).astype(np.float32), labels, cfg["none"])
    for (kind, scale), result in scaled.items():
        assert result["mean_norm"] == pytest.approx(norm * scale, rel=1e-5)
        if kind == "norm":
            assert result["scale"] == pytest.approx(fewshot.NORM / norm / scale, rel=1e-5)
            for shots, entry in result["shots"].items():
                assert entry["accuracy"] == pytest.approx(by_hand["shots"][shots]["accuracy"], abs=0.2)
        else:
            assert result["scale"] == 1.0
    plain = [scaled["none", scale]["shots"]["1"]["accuracy"] for scale in (0.125, 1.0, 8.0)]
    assert max(plain) - min(plain) > 5


def test_features_that_are_all_zero_are_not_scaled(tmp_path):
    features, labels = clusters()
    cfg = dataclasses.replace(QUICK, episodes=10, normalize="norm")
    result = result_of(tmp_path, np.zeros_like(features), labels, cfg)
    assert (result["mean_norm"], result["scale"]) == (0.0, 1.0)


@pytest.mark.slow
def test_the_compiled_solver_calls_no_other_kernel(tmp_path):
    """The process that compiles would link such a call to the kernel's own code, later processes to the copy optimised
    for the solver: other roundings, and other predictions where SGD is unstable."""
    script = """if True:
        import re
        from diffsiam.evaluation import fewshot, fewshot_kernels
        from tests.evaluation import test_fewshot as t
        features, labels = t.clusters()
        fewshot.predict(features, fewshot.episodes(labels, t.QUICK, "clusters"), t.QUICK, "clusters")
        (assembly,) = fewshot_kernels.solve.inspect_asm().values()
        instructions = re.findall(r"^[ \\t]+[a-z].*$", assembly, re.MULTILINE)
        print({name for line in instructions for name in re.findall(r"fewshot_kernels[0-9]+([a-z_]+)B[0-9]", line)})
    """
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "{'solve'}"
