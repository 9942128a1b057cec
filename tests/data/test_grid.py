"""Grids against the literal formula and a plain product of ranges."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from diffsiam.data.grid import Grid

GRID = Grid(("floor", "wall", "shape", "orientation"), (6, 2, 4, 7))


def test_factors_of_all_rows_are_the_product_of_the_ranges_first_factor_slowest() -> None:
    expected = list(itertools.product(*(range(size) for size in GRID.sizes)))
    assert GRID.size == len(expected)
    assert GRID.factors(np.arange(GRID.size)).tolist() == [list(f) for f in expected]


def test_index_is_the_printed_sum() -> None:
    factors = np.random.default_rng(0).integers(0, GRID.sizes, (50, 4))
    literal = [sum(f[i] * np.prod(GRID.sizes[i + 1 :]) for i in range(4)) for f in factors.tolist()]
    assert GRID.index(factors).tolist() == literal


def test_index_inverts_factors_for_every_row_in_any_shape() -> None:
    rows = np.arange(GRID.size).reshape(12, 28)
    assert GRID.factors(rows).shape == (12, 28, 4)
    np.testing.assert_array_equal(GRID.index(GRID.factors(rows)), rows)
    assert GRID.index(GRID.factors(5)) == 5


@pytest.mark.parametrize("factors", [[6, 0, 0, 0], [0, 0, 0, -1]])
def test_a_value_outside_its_factor_is_refused(factors: list[int]) -> None:
    with pytest.raises(ValueError, match="invalid entry"):
        GRID.index(factors)


def test_a_row_outside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        GRID.factors([0, GRID.size])


def test_the_grid_of_a_meta_json_comes_back_as_it_was() -> None:
    meta = json.loads(json.dumps({"grid": {"names": GRID.names, "sizes": GRID.sizes}}))
    assert Grid.of(meta) == GRID
