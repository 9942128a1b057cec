"""Grids of factors: every combination of a few factors' values once, in order, so that a row's number tells them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffsiam import runtime
from diffsiam.data.readers import Source, Split
from diffsiam.data.sources import DataSet


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


def whole(row: DataSet, load: Callable[[int], Image.Image], origin: Mapping[str, Any]) -> Source:
    """A grid as a source: train is all of it in its order; what test is, `drawn` says."""
    names = [f"row {i}" for i in range(row.train)]
    return Source([row.name], {"train": Split(names, np.zeros(row.train, np.int64), load)}, origin)


def drawn(row: DataSet, train: Path, split_seed: int) -> Split:
    """``row.test`` of a grid's images, for figures, in the order of their lot: out of ``train``, the array that was
    written for train, since a compressed file is read only once, from its start to its end."""
    rows = runtime.rng(split_seed, "grid/test", row.name).permutation(row.train)[: row.test]
    written = functools.cache(lambda: np.load(train, mmap_mode="r"))
    names = [f"row {i}" for i in rows]
    return Split(names, np.zeros(len(rows), np.int64), lambda i: Image.fromarray(written()[rows[i]]))
