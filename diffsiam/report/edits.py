"""Figures 4.1 to 4.7: what edits of z change, with the change itself beside the pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report.figures import Grid, Inputs, literal, method_title, size

_COUNTERFACTUAL = ("images", "reverse", "sources", "targets", "ranges", "scales", "indices")
_MANIPULATION = ("images", "originals", "attributes", "dims", "masked", "scales", "indices")
_NOISE = "$\\mathbf{x}_T$"
_WAYS = {"images": "sources", "reverse": "targets"}  # the arrays of either way, and where it begins

Arrays = Mapping[str, np.ndarray]


# ------------------------------------------------------------------------------------------------- differences
def difference(images: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Absolute, in each colour, of stored images: int16."""
    return np.abs(images.astype(np.int16) - before)


def gain(differences: np.ndarray) -> int:
    """The power of 2, 64 at most, by which differences are shown: one in 200 of them may be brighter than white."""
    brightest = max(float(np.percentile(differences, 99.5)), 1.0)
    return int(2 ** np.clip(np.floor(np.log2(255 / brightest)), 0, 6))


def amplified(differences: np.ndarray, times: int) -> np.ndarray:
    """Differences as pictures: black where nothing changed."""
    return (differences * times).clip(0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------- counterfactuals
class Row(NamedTuple):
    """A row of counterfactuals: a range of segments, and whether x_T goes along."""

    start: int
    stop: int
    exchanged: bool


def rows(arrays: Arrays) -> dict[Row, int]:
    """Where the arrays hold each row. Those of a version before have rows with x_T alone, and no empty range."""
    exchanged = arrays.get("exchanged", np.ones(len(arrays["ranges"]), bool))
    found: dict[Row, int] = {}
    for i, ((start, stop), along) in enumerate(zip(arrays["ranges"].tolist(), exchanged.tolist(), strict=True)):
        found.setdefault(Row(start, stop, along), i)
    return found


def everything(arrays: Arrays) -> tuple[int, int]:
    """The range of all of z."""
    start, stop = arrays["ranges"][-1].tolist()
    return start, stop


def changed(arrays: Arrays, row: Row) -> np.ndarray | None:
    """What the segments of a row change at the last scale, both ways: `difference` from the row of the empty range,
    (2, pairs, H, W, 3). Of that row itself, x_T alone, from the reconstruction, or the image where there is none.

    None where the arrays have no row of the empty range.
    """
    found, empty = rows(arrays), Row(0, 0, row.exchanged)
    if empty not in found:
        return None
    before = found.get(empty if row != empty else Row(0, 0, False))
    return np.stack(
        [
            difference(
                arrays[way][:, found[row], -1], arrays[own] if before is None else arrays[way][:, before, -1]
            )
            for way, own in _WAYS.items()
        ]
    )  # fmt: skip


def counterfactual(inputs: Inputs, *, full: bool, names: Sequence[str] = ()) -> Figure:
    """Figures 4.1 to 4.4: per pair, from the first image towards the second, and below it from the second towards the
    first, both from left to right (the thesis draws the second from right to left).

    Args:
        full: the row of all segments (Figures 4.3, 4.4), else the other ranges.
        names: what the thesis calls the ranges; these are then the inputs' ``ranges`` in this order.
    """
    arrays = inputs.arrays(_COUNTERFACTUAL)
    first = next(iter(arrays.values()))
    wanted = _wanted(inputs, first, full, names)
    for name, a in arrays.items():
        if wanted.keys() - rows(a).keys():
            other = next(iter(inputs.files.values()))
            problem = f"has other ranges of segments than {other}, or was made by another generation.exchange_noise"
            raise runtime.damaged(inputs.files[name], problem)
    changes = {(row, name): changed(a, row) for row in wanted for name, a in arrays.items()}
    known = [c for (row, _), c in changes.items() if c is not None and row[:2] != (0, 0)]
    complete = len(known) > 0 and all(c is not None for c in changes.values())
    times = gain(np.stack(known)) if complete else 1
    blocks, left = [], []
    for (row, name), change in changes.items():
        a, pairs = arrays[name], range(len(first["sources"]))
        shown = None if change is None or not complete else amplified(change, times)
        blocks.append([_both_ways(a, rows(a)[row], pair, shown) for pair in pairs])
        words = [*wanted[row], *([_short(method_title(name))] if len(arrays) > 1 else [])]
        words += [] if shown is None or change is None else [f"change {change.mean():.1f}"]
        left.append("\n".join(words))
    whose = method_title(next(iter(arrays))) if len(arrays) == 1 else ""
    above = [f"pair {i + 1}: test images {a} and {b}" for i, (a, b) in enumerate(first["indices"])]
    ticks = ["original", *(f"{s:g}" for s in first["scales"]), *([f"change\nx{times}"] if complete else [])]
    what = "All of z drawn" if full else f"{', '.join(names) or 'Ranges of'} segments drawn"
    title = f"{what} to the other image of a pair: {inputs.dataset}, {size(first['images'])}{whose and ', '}{whose}"
    note = "Above, from the first image towards the second by the scales; below, from the second towards the first."
    if complete:
        note += (
            f" Change: at scale {first['scales'][-1]:g}, by the segments alone (in the row of {_NOISE} alone: by "
            f"{_NOISE}), in each colour, x{times}; the number is its mean in grey levels of 255."
        )
    return Grid(title, note, blocks, left, above, ticks).draw()


def _wanted(inputs: Inputs, first: Arrays, full: bool, names: Sequence[str]) -> dict[Row, list[str]]:
    """The rows of a figure with the words that label them."""
    there, whole = rows(first), everything(first)
    kinds = list(dict.fromkeys(row.exchanged for row in there))
    parts = list(dict.fromkeys(row[:2] for row in there if row[:2] not in ((0, 0), whole)))
    spans = [whole] if full else list(inputs.ranges) if names else parts
    if missing := set(spans) - {*parts, whole}:
        raise UserError(
            f"figures.early_middle_late: no pictures of the ranges {sorted(missing)} on {inputs.dataset}. Made are "
            f"those of generation.ranges: {parts}. Choose three of them, or add to them."
        )
    wanted: dict[Row, list[str]] = {}
    for kind in kinds:
        if kind and Row(0, 0, kind) in there:
            wanted[Row(0, 0, kind)] = [f"{_NOISE} alone"]
        for i, span in enumerate(spans):
            words = "all of z" if full else f"{names[i] if names else 'segments'} {span[0]}-{span[1]}"
            wanted[Row(*span, kind)] = [words, f"and {_NOISE}" if kind else f"own {_NOISE}"]
    return wanted


def _both_ways(arrays: Arrays, i: int, pair: int, change: np.ndarray | None) -> np.ndarray:
    """(2, 1 + scales, H, W, 3), and the change after them where there is one: the way there, and the way back."""
    ways = []
    for k, (way, own) in enumerate(_WAYS.items()):
        last = [] if change is None else [change[k, pair]]
        ways.append(np.stack([arrays[own][pair], *arrays[way][pair, i], *last]))
    return np.stack(ways)


# ------------------------------------------------------------------------------------------------ manipulation
def manipulation(inputs: Inputs, *, full: bool, side_by_side: bool = False) -> Figure:
    """Figures 4.5 to 4.7: each sample pushed along an attribute; scale 0 is the reconstruction.

    Args:
        full: the classifiers on all of z (Figure 4.7), else the masked ones.
        side_by_side: methods in columns and samples in rows (Figure 4.6), else the other way round.
    """
    arrays = inputs.arrays(_MANIPULATION)
    first = next(iter(arrays.values()))
    attributes, samples, scales = manipulated(first, full=full), sources(first), first["scales"]
    moves = {name: difference(a["images"][:, :, -1], a["images"][:, :, 0]) for name, a in arrays.items()}
    kept = [i for i, *_ in attributes]
    times = gain(np.stack([m[kept][:, samples] for m in moves.values()]))

    def block(name: str, i: int, s: int) -> np.ndarray:
        return np.stack([*arrays[name]["images"][i, s], amplified(moves[name][i, s], times)])[None]

    blocks, left, changes = [], [], []
    for i, attribute, dims in attributes:
        words = f"{'all' if full else dims} dim."
        for s in samples if side_by_side else []:
            blocks.append([block(name, i, s) for name in arrays])
            changes.append([f"{m[i, s].mean():.1f}" for m in moves.values()])
            left.append(f"{literal(attribute)}, {words}\ntest image {first['indices'][s]}")
        for name in () if side_by_side else arrays:
            blocks.append([block(name, i, s) for s in samples])
            level = moves[name][i, samples].mean()
            left.append(f"{literal(_short(attribute))}\n{_short(method_title(name))}\n{words}, change {level:.1f}")
    kind = "all of z" if full else "few dimensions of z"
    title = f"Pushed along an attribute, by {kind}: {inputs.dataset}, {size(first['images'])}"
    note = (
        f"Scale 0 is the reconstruction. Change: between scales {scales[0]:g} and {scales[-1]:g}, in each colour, "
        f"x{times}; its mean in grey levels of 255{', column by column' if side_by_side else ''}."
    )
    above = (
        [method_title(n) for n in arrays] if side_by_side else [f"test image {first['indices'][s]}" for s in samples]
    )
    ticks = [*(f"{s:+g}" if s else "0" for s in scales), f"change\nx{times}"]
    return Grid(title, note, blocks, left, above, ticks, changes).draw()


def _short(label: str) -> str:
    """In lines that leave room for three pairs beside them."""
    return textwrap.fill(label, 18)


def sources(arrays: Arrays) -> range:
    """The samples that figures of single images show: the first image of every pair."""
    return range(0, len(arrays["originals"]), 2)


def manipulated(arrays: Arrays, *, full: bool) -> list[tuple[int, str, int]]:
    """Rows of the arrays with their attribute and dimensions: the classifiers on all of z, or the masked ones."""
    found = zip(arrays["attributes"], arrays["dims"], arrays["masked"], strict=True)
    return [(i, str(a), int(d)) for i, (a, d, masked) in enumerate(found) if masked != full]
