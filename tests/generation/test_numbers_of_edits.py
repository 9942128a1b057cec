"""Edits whose effect is known: a model that draws a wave for each segment, and a classifier that reads them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest
import torch

from diffsiam.evaluation.probmask import Classifier
from diffsiam.generation import edits, measure
from diffsiam.generation.model import Guided

SIDE, COUNT = 16, 8
NAMES = ["fine", "middle", "coarse"]
RANGES = [(0, 1), (1, 2), (2, 3), (0, 3)]
OCTAVES = math.log2(SIDE / math.sqrt(2))


def waves(*cycles: int) -> torch.Tensor:
    """(len(cycles), SIDE, SIDE) with so many waves across an image; their products have mean 0."""
    across = torch.cos(2 * math.pi * torch.arange(SIDE) / SIDE * torch.tensor(cycles)[:, None])
    return across[:, None].expand(-1, SIDE, -1)


class Planted:
    """Segment k, of one dimension, is the height of wave k, and x_T, a level, that of pixels in turn."""

    edges = torch.arange(4)

    def __init__(self, *cycles: int) -> None:
        self.waves = waves(*cycles)

    @property
    def whole(self) -> Planted:
        return self

    def sample(self, x_T: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        pixels = (-1.0) ** (torch.arange(SIDE)[:, None] + torch.arange(SIDE))
        drawn = torch.einsum("nk,kyx->nyx", z, self.waves) + x_T.mean(dim=(1, 2, 3))[:, None, None] * pixels
        return drawn[:, None].expand(-1, 3, -1, -1)


def planted(*cycles: int) -> tuple[Guided, edits.Latents, edits.Judge]:
    """The classifier gives a wave's height as the probability of its attribute."""
    model = Planted(*cycles)
    bits = torch.randint(0, 2, (COUNT, 3), generator=torch.Generator().manual_seed(0))
    bits[:4] = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]])  # every attribute differs in some pair
    z = 0.05 + 0.2 * bits
    x_T = torch.linspace(0, 0.05, COUNT)[:, None, None, None].expand(-1, 3, SIDE, SIDE)

    def tell(images: torch.Tensor) -> np.ndarray:
        read = torch.einsum("nyx,kyx->nk", images[:, 0], model.waves) / (SIDE**2 / 2)
        return read.double().numpy()

    labels = bits.numpy()
    judge = edits.Judge(tell, NAMES, [0, 1, 2], np.eye(3, dtype=bool), labels)
    return cast(Guided, model), (z, x_T), judge


def found(rows: edits.Rows) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    return {(row["measure"], row["subject"], row["attribute"], row["metric"]): row for row in rows}


def test_each_range_moves_its_own_attribute_alone_and_later_ones_change_coarser_things() -> None:
    model, latents, judge = planted(4, 2, 1)
    told = found(edits.exchanges(model, latents, RANGES, judge))
    partner = measure.partners(COUNT)
    for what in ("counterfactual", "segments"):
        for k, (name, octave) in enumerate(zip(NAMES, (2, 1, 0), strict=True)):
            span = f"{k}-{k + 1}"
            differ = int((judge.labels[partner, k] != judge.labels[:, k]).sum())
            own, others = (told[what, span, name, metric] for metric in ("moved_own", "moved_others"))
            assert (own["value"], own["images"]) == (pytest.approx(0.2, abs=1e-5), differ)
            assert others["value"] == pytest.approx(0, abs=1e-5)
            other = told[what, span, NAMES[k - 1], "moved_own"]["value"]
            assert other == pytest.approx(0, abs=1e-5)
            coarse = told[what, span, "", "coarseness"]
            assert (coarse["value"], coarse["images"]) == (pytest.approx(1 - octave / OCTAVES, abs=1e-4), differ)
    alone = told["counterfactual", edits.NOISE_ALONE, "", "coarseness"]
    assert (alone["value"], alone["images"]) == (pytest.approx(0, abs=1e-4), COUNT)


@pytest.mark.parametrize(("cycles", "trend"), [((4, 2, 1), 1), ((1, 2, 4), -1)])
def test_the_trend_tells_which_end_is_coarse(cycles: tuple[int, ...], trend: int) -> None:
    model, (z, x_T), _ = planted(*cycles)
    z = torch.linspace(0.05, 0.25, COUNT)[:, None] * torch.ones(3)  # every pair differs in every segment
    rows = edits.exchanges(model, (z, x_T), RANGES, None)
    told = found(rows)
    for what in ("counterfactual", "segments"):
        row = told[what, "early to late", "", "coarseness_trend"]
        assert (row["value"], row["ci95"], row["images"]) == (pytest.approx(trend), pytest.approx(0, abs=1e-9), COUNT)
    assert {row["metric"] for row in rows} == {"coarseness", "coarseness_trend"}  # without a classifier


def test_a_push_moves_its_attribute_by_its_length_and_no_other() -> None:
    model, latents, judge = planted(4, 2, 1)
    weight, unit = np.array([0, 1, 0], np.float32), np.ones(3, np.float32)
    classifier = Classifier("middle", weight, 0.0, 0 * unit, 0.05 * unit, masked=True)
    one = dataclasses.replace(judge, own=[1])
    told = found(edits.pushes(model, latents, [classifier], [-2.0, 0.0, 2.0], one))
    assert {key[1] for key in told} == {"1 -2", "1 +2"}
    for subject in ("1 -2", "1 +2"):
        values = {
            m: told["manipulation", subject, "middle", m]["value"] for m in ("intended", "moved_own", "coarseness")
        }
        assert values["intended"] == pytest.approx(0.1, abs=1e-5)
        assert values["moved_own"] == pytest.approx(0.1, abs=1e-5)
        assert values["coarseness"] == pytest.approx(1 - 1 / OCTAVES, abs=1e-4)
        assert told["manipulation", subject, "middle", "moved_others"]["value"] == pytest.approx(0, abs=1e-5)
