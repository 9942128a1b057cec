"""The numbers by hand, and a classifier that learns what is plain to see."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from diffsiam.errors import UserError
from diffsiam.generation import measure
from diffsiam.params import PixelClassifier

CPU = torch.device("cpu")


def test_round_trip_by_hand() -> None:
    images = torch.zeros(2, 3, 4, 4)
    returned = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.2)])
    found = measure.round_trip(images, returned)
    assert found["mse"] == pytest.approx((0.01 + 0.04) / 2)
    # The peak of [-1, 1] is 2: 20 log10(2 / rmse), averaged over images.
    assert found["psnr"] == pytest.approx((20 * math.log10(2 / 0.1) + 20 * math.log10(2 / 0.2)) / 2, abs=1e-4)


def test_round_trip_measures_pictures_as_they_are_stored() -> None:
    images = torch.ones(1, 3, 4, 4)
    assert measure.round_trip(images, 1.5 * images)["mse"] == 0
    assert measure.round_trip(images, -3 * images)["mse"] == 4


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_no_image_is_in_both_halves_of_the_pairs(count: int) -> None:
    partner = measure.partners(count).tolist()
    assert sorted(partner) == list(range(count))
    assert [(i - p) % 2 for i, p in enumerate(partner)] == [0] * count
    assert [i for i, p in enumerate(partner) if i == p] == {1: [0], 2: [0, 1], 5: [], 6: []}[count]


def test_attributes_that_never_meet_exclude_each_other() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 1], [0, 1, 0], [1, 0, 0]], np.uint8)
    expected = [[True, True, False], [True, True, False], [False, False, True]]
    assert measure.exclusive(labels).tolist() == expected


def test_manipulated_by_hand() -> None:
    same = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool)
    change = np.array([[-0.5, 0.9, 0.1, -0.2], [-0.3, 0.9, -0.1, 0.0]])
    found = measure.manipulated(change, 0, -1, same)
    assert found == {"intended": pytest.approx(0.4), "others": pytest.approx((0.1 + 0.2 + 0.1 + 0.0) / 4)}


def test_exchanged_chooses_on_the_even_pairs_and_measures_on_the_odd() -> None:
    same = np.eye(3, dtype=bool)
    difference = np.array([[1, -1, 0], [1, 1, 0], [-1, 0, 0], [0, -1, 0]])
    change = np.array([[0.2, -0.9, 0.3], [0.1, 0.4, -0.2], [-0.2, 0.0, 0.3], [0.0, -0.6, 0.2]])
    # Even pairs: attribute 0 moved by (0.2 + 0.2) / 2, attribute 1 by 0.9. Odd pairs: attribute 1 by (0.4 + 0.6) / 2.
    found = measure.exchanged(change, difference, same)
    assert found is not None
    assert found[0] == 1
    assert found[1] == {"intended": pytest.approx(0.5), "others": pytest.approx((0.1 + 0.2 + 0.0 + 0.2) / 4)}
    assert measure.exchanged(change, np.zeros((4, 3), np.int64), same) is None


@pytest.mark.parametrize("seed", range(3))
def test_exchanged_is_what_a_loop_over_pairs_and_attributes_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    change, difference = rng.normal(size=(40, 5)), rng.integers(-1, 2, (40, 5))
    change[:, 2] -= 3 * difference[:, 2]  # moves far, but away from the other image's label
    same = np.eye(5, dtype=bool)
    same[3, 4] = same[4, 3] = True

    def towards(first: int, a: int) -> float:
        pairs = [i for i in range(first, 40, 2) if difference[i, a]]
        return sum(change[i, a] * difference[i, a] for i in pairs) / len(pairs)

    chosen = max(range(5), key=lambda a: towards(0, a))
    others = [abs(change[i, a]) for i in range(1, 40, 2) for a in range(5) if not same[chosen, a]]
    found = measure.exchanged(change, difference, same)
    assert found is not None
    assert found[0] == chosen != 2
    assert found[1] == {
        "intended": pytest.approx(towards(1, chosen)),
        "others": pytest.approx(sum(others) / len(others)),
    }


def test_a_mean_has_the_normal_interval_of_what_is_known() -> None:
    values = np.array([0.1, np.nan, 0.4, 0.9, 0.2])
    value, half, count = measure.mean(values) or (0, 0, 0)
    assert (value, count) == (pytest.approx(0.4), 4)
    assert half == pytest.approx(1.96 * math.sqrt((0.09 + 0 + 0.25 + 0.04) / 4) / math.sqrt(4))
    assert math.isnan((measure.mean(np.array([0.5])) or (0, 0))[1])
    assert measure.mean(np.array([np.nan])) is None


def test_moved_compares_an_attribute_with_those_that_do_not_exclude_it() -> None:
    same = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool)
    change = np.array([[-0.5, 0.9, 0.1, -0.2], [0.3, 0.9, -0.5, 0.0]])
    found = measure.moved(change, 0, same)
    assert {name: m and m.value for name, m in found.items()} == {
        "moved_own": pytest.approx((0.5 + 0.3) / 2),
        "moved_others": pytest.approx((0.1 + 0.2 + 0.5 + 0.0) / 4),
    }
    assert (found["moved_others"] or (0, 0))[1] == pytest.approx(1.96 * 0.05 / math.sqrt(2))  # of 0.15 and 0.25
    assert measure.moved(change, 0, np.ones((4, 4), bool))["moved_others"] is None


def wave(side: int, across: int, down: int) -> torch.Tensor:
    """(1, 3, side, side) with so many waves across and down the image, of different strength in each colour."""
    x = 2 * math.pi * torch.arange(side) / side
    drawn = torch.cos(across * x[None] + down * x[:, None])
    return 0.1 * torch.tensor([1.0, -2.0, 0.5])[None, :, None, None] * drawn


@pytest.mark.parametrize("side", [8, 12, 16])
def test_the_coarseness_of_planted_changes(side: int) -> None:
    """1 of one level and of one wave, 0 of single pixels in turn; octaves between them, sqrt(2) of a diagonal too."""
    octaves = math.log2(side / math.sqrt(2))
    expected = {(0, 0): 1.0, (1, 0): 1.0, (0, 2): 1 - 1 / octaves, (2, 2): 1 - 1.5 / octaves}
    expected |= {(side // 2, side // 2): 0.0, (side // 2, 0): 0.5 / octaves}
    for (across, down), value in expected.items():
        assert measure.coarseness(wave(side, across, down))[0] == pytest.approx(value, abs=1e-6), (across, down)
    ramp = torch.rand(1, 3, side, side)
    assert measure.coarseness(1e-3 * ramp) == pytest.approx(measure.coarseness(ramp), rel=1e-5)
    assert np.isnan(measure.coarseness(torch.stack([0 * ramp[0], 1e-7 * ramp[0]]))).all()


def test_coarseness_is_the_formula_summed_over_frequencies_one_by_one() -> None:
    side, change = 6, torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    y, x = np.mgrid[:side, :side]
    for image, found in zip(change.double().numpy(), measure.coarseness(change), strict=True):
        total = fine = 0.0
        for u in range(-side // 2, side // 2):
            for v in range(-side // 2, side // 2):
                turning = np.exp(-2j * np.pi * (u * y + v * x) / side)
                power = sum(abs((colour * turning).sum()) ** 2 for colour in image)
                total += power
                fine += power * math.log2(max(math.sqrt(u**2 + v**2), 1))
        assert found == pytest.approx(1 - fine / total / math.log2(side / math.sqrt(2)))


def test_the_trend_is_spearmans_between_the_middle_of_a_range_and_its_coarseness() -> None:
    ranges = [(0, 2), (0, 4), (4, 8), (1, 3), (8, 16)]  # two of the same middle
    coarse = np.random.default_rng(0).random((5, 12)).round(1)  # with ties
    coarse[:, 3] = np.nan
    each = [scipy.stats.spearmanr([2, 4, 12, 4, 24], column).statistic for column in coarse.T if column[0] >= 0]
    found = measure.trend(coarse, ranges)
    assert found is not None
    assert found == (pytest.approx(np.mean(each)), pytest.approx(1.96 * np.std(each) / math.sqrt(11)), 11)
    assert measure.trend(np.full((5, 4), 0.5), ranges) is None  # no order at all
    assert measure.trend(coarse[:1], ranges[:1]) is None


def test_the_classifiers_rate_falls_by_half_a_cosine_from_that_of_the_params() -> None:
    rates: list[float] = []
    watch = register_optimizer_step_pre_hook(lambda adam, *_: rates.append(float(adam.param_groups[0]["lr"])))
    try:
        cfg = PixelClassifier(2, 12, 4, 0.01, 0)
        measure.train(
            torch.zeros(8, 8, 8, 3, dtype=torch.uint8), np.eye(8, 2, dtype=np.uint8), cfg, CPU, captured=False
        )
    finally:
        watch.remove()
    adam = torch.optim.Adam([torch.zeros(1)], lr=0.01)
    expected, cosine = [], torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=12)
    for _ in range(12):
        expected.append(cosine.get_last_lr()[0])
        adam.step()
        cosine.step()
    assert rates == pytest.approx(expected, rel=1e-5)


def test_the_classifier_learns_what_is_plain_to_see_and_keeps_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (160, 2)).astype(np.uint8)
    images = rng.integers(0, 100, (160, 8, 8, 3)).astype(np.uint8)
    images[:, :, :, 0] += 120 * labels[:, None, None, 0].repeat(8, 1).repeat(8, 2)
    images[:, :4, :, 2] += 120 * labels[:, None, None, 1].repeat(4, 1).repeat(8, 2)
    pictures = torch.from_numpy(images)
    torch.set_num_threads(1)
    net = measure.train(pictures[:100], labels[:100], PixelClassifier(2, 60, 32, 0.01, 0), CPU, captured=False)
    assert min(measure.scores(net, pictures[100:], labels[100:], CPU)) > 0.9
    facts = {"width": 2, "image_size": 8, "attributes": ["a", "b"]}
    measure.save(tmp_path / "c.safetensors", net, facts)
    again = measure.load(tmp_path / "c.safetensors", ["a", "b"])
    assert torch.equal(again.probabilities(pictures, CPU), net.probabilities(pictures, CPU))
    with pytest.raises(UserError, match="knows the attributes a, b"):
        measure.load(tmp_path / "c.safetensors", ["a"])
