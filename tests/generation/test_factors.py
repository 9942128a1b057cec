"""Shares on planted predictions, against plain loops; a classifier of factors that are plain to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffsiam import params, runtime
from diffsiam.data.grid import Grid
from diffsiam.errors import UserError
from diffsiam.generation import factors, figures, measure
from tests.generation import tiny_guided

GRID = Grid(("hue", "side", "shade"), (3, 2, 4))
APART = [1, 4, 6, 9, 11, 14, 20, 23]
RUNTIME = params.Runtime("cpu", "fp32", 1, False, False, False, 5.0, False)


def planted(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Factors of images before a swap, and of its targets: (M, F) each."""
    rows = np.random.default_rng(seed).integers(GRID.size, size=(2, samples))
    return GRID.factors(rows[0]), GRID.factors(rows[1])


def test_a_code_that_carries_one_factor_moves_it_in_every_sample_and_no_other() -> None:
    before, target = planted(60)
    codes = np.stack([np.where(np.arange(3) == k, target, before) for k in (2, 0)] + [before, target])
    expected = [[0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert factors.moved(before, codes, target).tolist() == expected
    first, second = (factors.carried(before, after, target) for after in codes[:2])
    assert (first.factor, first.intended, first.runner_up, first.others) == (2, 1, 0, 0)
    assert (second.factor, second.intended, second.others) == (0, 1, 0)


def test_shares_are_those_of_a_plain_loop() -> None:
    before, target = planted(40)
    after = np.stack([planted(40, seed)[0] for seed in (1, 2)])
    expected = np.zeros((2, 3))
    for c in range(2):
        for k in range(3):
            told = [after[c, i, k] == target[i, k] for i in range(40) if before[i, k] != target[i, k]]
            expected[c, k] = sum(told) / len(told)
    assert factors.moved(before, after, target) == pytest.approx(expected)
    assert (expected > 0).all()


def test_a_factor_that_agrees_beforehand_counts_nowhere() -> None:
    before, target = planted(20)
    target[:, 1] = before[:, 1]
    found = factors.moved(before, target, target)
    assert np.isnan(found[1])
    assert found[[0, 2]].tolist() == [1, 1]
    after = np.where([True, False, False], target, before)
    carried = factors.carried(before, after, target)
    assert (carried.factor, carried.intended, carried.others) == (0, 1, 0)
    none = factors.carried(before, after, before)
    assert np.isnan([none.intended, none.others]).all()


def test_the_factor_is_chosen_on_the_first_half_and_measured_on_the_second() -> None:
    before, target = np.zeros((8, 3), np.int64), np.ones((8, 3), np.int64)
    after = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]] + [[1, 1, 0]] + [[0, 0, 1]] * 3)
    found = factors.carried(before, after, target)
    assert (found.factor, found.second) == (0, 1)
    assert (found.intended, found.runner_up) == (0.25, 0.25)
    assert found.others == pytest.approx((0.25 + 0.75) / 2)


def grid(folder: Path, grid: Grid = GRID) -> Path:
    """A prepared grid of 8x8 images that show their factors plainly, below ``folder``/data."""
    data = folder / "data"
    data.mkdir(parents=True)
    hue, side, shade = grid.factors(np.arange(grid.size)).T
    images = np.zeros((grid.size, 8, 8, 3), np.uint8)
    images[np.arange(grid.size), :, :, hue] = 200
    images[np.arange(grid.size)[:, None], :4, side[:, None] * 7] = 255
    images[:, 5:] = (80 * shade[:, None, None, None]).astype(np.uint8)
    np.save(data / "images_train.npy", images)
    meta = {"dataset": "rooms", "counts": {"train": grid.size, "test": 1}, "splits": {"val": APART}}
    meta |= {"grid": {"names": list(grid.names), "sizes": list(grid.sizes)}, "attributes": []}
    runtime.write_json(data / "meta.json", meta)
    return data


def test_the_classifier_of_a_grid_tells_factors_of_images_that_it_did_not_see(tmp_path: Path) -> None:
    data, out = grid(tmp_path), tmp_path / "c.safetensors"
    learnt = {"width": 4, "steps": 120, "batch_size": 16, "learning_rate": 0.01, "seed": 0}
    torch.set_num_threads(1)
    figures.run("classifier", tiny_guided.settings(classifier=learnt), RUNTIME, data, None, out, root=tmp_path)
    facts = runtime.read_json(out.with_suffix(".json"))
    assert list(facts["accuracy"]) == facts["attributes"] == list(GRID.names)
    assert facts["scored_on"] == 8
    assert np.mean([*facts["accuracy"].values()]) > 0.6  # by chance .36
    net = measure.load(out, GRID.names, sum(GRID.sizes))
    pictures = torch.from_numpy(np.load(data / "images_train.npy"))
    found = factors.predict(net, pictures, GRID.sizes, torch.device("cpu"))
    logits = net.logits(pictures, torch.device("cpu"))
    assert found[5].tolist() == [int(part[5].argmax()) for part in (logits[:, :3], logits[:, 3:5], logits[:, 5:])]
    right = (found == GRID.factors(np.arange(GRID.size)))[APART].mean(axis=0)
    assert right.tolist() == [*facts["accuracy"].values()]
    with pytest.raises(UserError, match="knows the attributes hue, side, shade; the data has floor"):
        measure.load(out, ["floor"], 3)
