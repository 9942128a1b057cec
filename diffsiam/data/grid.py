"""Grids of factors: every combination of a few factors' values once, in order, so that a row's number tells them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid:
    """The factors of a data set that holds one image of every combination, the first factor slowest.

    Attributes:
        names: of the F factors.
        sizes: numbers of values, as many; factor i takes 0 .. sizes[i] - 1.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Grid:
        """The ``grid`` of a prepared data set's meta.json; `KeyError` where it has none."""
        return cls(tuple(meta["grid"]["names"]), tuple(meta["grid"]["sizes"]))

    @classmethod
    def named(cls, factors: Iterable[tuple[str, int]]) -> Grid:
        """Of pairs of a name and a number of values, as `sources.DATASETS` has them."""
        names, sizes = zip(*factors, strict=True)
        return cls(names, sizes)

    @property
    def size(self) -> int:
        """The number of images."""
        return int(np.prod(self.sizes, dtype=np.int64))

    def index(self, factors: np.ndarray | Sequence[Any]) -> np.ndarray:
        """Rows of combinations, (..., F) -> (...): the sum over i of f_i times the product of the sizes after i.

        Raises:
            ValueError: a value is outside its factor's range.
        """
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(np.asarray(factors), -1, 0)), self.sizes))

    def factors(self, index: np.ndarray | Sequence[int] | int) -> np.ndarray:
        """The combinations of rows, (...) -> int64 (..., F): the inverse of `index`.

        Raises:
            ValueError: a row is outside 0 .. size - 1.
        """
        return np.stack(np.unravel_index(np.asarray(index), self.sizes), axis=-1).astype(np.int64)
