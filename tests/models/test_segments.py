"""Segments of z, by hand and against loops over steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from diffsiam.errors import UserError
from diffsiam.models import segments

STAGES, DIMS = (50, 100, 300, 500, 1000), (10, 25, 327, 100, 50)  # DiTi's
UNEVEN = torch.tensor([0, 1, 3, 6])  # three segments of 1, 2 and 3 numbers


def z() -> torch.Tensor:
    """Three rows, each 1 2 3 4 5 6."""
    return torch.arange(1.0, 7.0).repeat(3, 1).requires_grad_()


K = torch.tensor([1, 2, 3])


def test_even_edges_by_hand() -> None:
    assert segments.even_edges(6, 3).tolist() == [0, 2, 4, 6]
    assert segments.even_edges(512, 64).tolist() == list(range(0, 513, 8))  # the thesis: 8 numbers each


@pytest.mark.parametrize(
    ("strategy", "edges", "expected"),
    [
        ("full", UNEVEN, [[1, 2, 3, 4, 5, 6]] * 3),
        ("hierarchical", UNEVEN, [[1, 0, 0, 0, 0, 0], [1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]]),
        ("hierarchical_detach", UNEVEN, [[1, 0, 0, 0, 0, 0], [1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]]),
        ("sequential", UNEVEN, [[1, 0, 0, 0, 0, 0], [0, 2, 3, 0, 0, 0], [0, 0, 0, 4, 5, 6]]),
        ("hierarchical", torch.tensor([0, 2, 4, 6]), [[1, 2, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 5, 6]]),
        ("sequential", torch.tensor([0, 2, 4, 6]), [[1, 2, 0, 0, 0, 0], [0, 0, 3, 4, 0, 0], [0, 0, 0, 0, 5, 6]]),
    ],
)
def test_values_by_hand(strategy: str, edges: torch.Tensor, expected: list[list[int]]) -> None:
    assert segments.mask(z(), K, edges, strategy).tolist() == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("full", [[1, 1, 1, 1, 1, 1]] * 3),
        ("hierarchical", [[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]),
        ("hierarchical_detach", [[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
        ("sequential", [[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
    ],
)
def test_gradient_reaches_the_parts_of_z_that_the_strategy_trains(strategy: str, expected: list[list[int]]) -> None:
    leaf = z()
    segments.mask(leaf, K, UNEVEN, strategy).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == expected


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="hierarchial"):
        segments.mask(z(), K, UNEVEN, "hierarchial")


def test_segment_of_step_is_ditis_floor_and_every_segment_has_its_share_of_the_steps() -> None:
    got = segments.segment_of_step(torch.arange(1000), 64, 1000).tolist()
    assert got == [1 + math.floor(t * 64 / 1000) for t in range(1000)]
    assert got[0] == 1
    assert got[-1] == 64
    assert {got.count(k) for k in range(1, 65)} == {15, 16}


def staged_by_steps() -> list[int]:
    """Width of each of the 64 segments, from a walk over the 1000 steps."""
    first_step: dict[int, int] = {}
    for t in range(1000):
        first_step.setdefault(t * 64 // 1000, t)
    widths = [0] * 64
    start = 0
    for end, dims in zip(STAGES, DIMS, strict=True):
        own = [k for k, t in sorted(first_step.items()) if start <= t < end]
        for k in own:
            widths[k] = dims // len(own)
        widths[own[-1]] += dims % len(own)
        start = end
    return widths


def test_staged_widths_of_diti() -> None:
    edges = segments.staged_edges(512, 64, 1000, STAGES, DIMS).tolist()
    widths = [b - a for a, b in itertools.pairwise(edges)]
    assert widths == staged_by_steps()
    assert edges[0] == 0
    assert edges[-1] == 512
    # 4, 3, 13, 12 and 32 segments: METHOD.md's count
    ends = [4, 7, 20, 32, 64]
    assert [edges[e] for e in ends] == [10, 35, 362, 462, 512]
    assert widths[:7] == [2, 2, 2, 4, 8, 8, 9]


def test_a_segment_whose_first_step_opens_a_stage_belongs_to_it() -> None:
    """Of 64 segments the second begins at step 16, the first whole number from 15.625 on."""
    assert segments.staged_edges(512, 64, 1000, (16, 1000), (8, 504)).tolist()[:3] == [0, 8, 16]


def test_one_stage_is_equal_widths() -> None:
    assert torch.equal(segments.staged_edges(512, 64, 1000, (1000,), (512,)), segments.even_edges(512, 64))


@pytest.mark.parametrize(
    ("stages", "dims"),
    [
        ((50, 1000), (512,)),  # one dimension count too few
        ((50, 1000), (10, 501)),  # 511 dimensions
        ((50, 900), (10, 502)),  # ends before the last step
        ((500, 50, 1000), (10, 2, 500)),  # does not rise
        ((50, 50, 1000), (10, 2, 500)),  # an empty stage
        ((50, 60, 1000), (10, 2, 500)),  # no segment starts in 50..59
    ],
)
def test_stages_that_do_not_fit_are_refused_with_both_lists(stages: tuple[int, ...], dims: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as error:
        segments.staged_edges(512, 64, 1000, stages, dims)
    for part in ("representation.diti", str(list(stages)), str(list(dims)), "512", "1000"):
        assert part in str(error.value)
