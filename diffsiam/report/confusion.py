"""results/figures/confusion: what the linear probes of Table 4.1 confuse, from their stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.report.figures import literal, method_title
from diffsiam.report.paired import color

_PAIRS = 8  # that are shown of each data set
_FEW = 20  # classes of which a matrix can be read


@dataclass(frozen=True)
class Confusion:
    """One data set.

    Attributes:
        classes: their names.
        shares: by method, (C, C): in what share of the images of a class (row) a class (column) is answered, over
            seeds; NaN for a class without images.
        images: (C,) test images of each class.
    """

    dataset: str
    classes: list[str]
    shares: dict[str, np.ndarray]
    images: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over methods."""
        return np.mean([*self.shares.values()], axis=0)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(true class, answer) of the largest shares off the diagonal of `mean`, the largest first."""
        off = np.nan_to_num(self.mean)
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None, kind="stable")[:_PAIRS]
        found = (np.unravel_index(i, off.shape) for i in order if off.flat[i] > 0)
        return [(int(a), int(b)) for a, b in found]


def read(files: Mapping[str, Path]) -> list[Confusion]:
    """Linear results, gathered by data set."""
    counts: dict[str, dict[str, np.ndarray]] = {}
    classes: dict[str, list[str]] = {}
    images: dict[str, np.ndarray] = {}
    for path in files.values():
        result: dict[str, Any] = runtime.read_json(path)
        found = np.array(result["confusion"])
        of = counts.setdefault(result["dataset"], {})
        of[result["method"]] = of.get(result["method"], 0) + found
        classes[result["dataset"]], images[result["dataset"]] = [*result["per_class"]], found.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return [
            Confusion(name, classes[name], {m: n / n.sum(axis=1, keepdims=True) for m, n in of.items()}, images[name])
            for name, of in counts.items()
        ]


def draw(found: Sequence[Confusion]) -> Figure:
    """A row for each data set: the matrix, where it has few classes, and the pairs that are confused most."""
    fig = Figure(figsize=(9.0, 0.7 + 2.7 * len(found)), layout="constrained")
    panels = fig.subplots(len(found), 2, squeeze=False, width_ratios=(1, 1.5))
    for one, (left, right) in zip(found, panels, strict=True):
        _matrix(left, one)
        _pairs(right, one)
    found_entries = (panel.get_legend_handles_labels() for panel in panels[:, 1])
    entries = {text: handle for handles, names in found_entries for handle, text in zip(handles, names, strict=True)}
    fig.legend(entries.values(), entries, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def _matrix(ax: Axes, one: Confusion) -> None:
    if len(one.classes) > _FEW:
        ax.axis("off")
        ax.text(0.5, 0.5, f"{one.dataset}: {len(one.classes)} classes,\ntoo many for a matrix", ha="center", fontsize=8)
        return
    ax.imshow(one.mean, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    names = [literal(name[:14]) for name in one.classes]
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.set_xlabel("answer", fontsize=7)
    ax.set_ylabel("true class", fontsize=7)
    ax.set_title(f"{one.dataset}: mean over methods", fontsize=8.5)


def _pairs(ax: Axes, one: Confusion) -> None:
    pairs = one.pairs
    if not pairs:
        ax.axis("off")
        return
    for i, (method, shares) in enumerate(one.shares.items()):
        y = np.arange(len(pairs)) + 0.6 * ((i + 0.5) / len(one.shares) - 0.5)
        ax.plot([100 * shares[a, b] for a, b in pairs], y, "o", ms=3.5, color=color(method), label=method_title(method))
    names = [literal(f"{one.classes[a][:18]} as {one.classes[b][:18]}") for a, b in pairs]
    ax.set_yticks(range(len(pairs)), names, fontsize=7)
    ax.set_ylim(len(pairs) - 0.5, -0.5)
    ax.set_xlim(left=-0.02 * ax.get_xlim()[1])
    ax.tick_params(axis="x", labelsize=7)
    ax.set_xlabel("share of the true class's test images (%)", fontsize=7)
    ax.set_title(f"{one.dataset}: confused most", fontsize=8.5)
    ax.grid(axis="x", alpha=0.3)


def shows(found: Sequence[Confusion]) -> str:
    """The pair that each data set's probes confuse most, by method, in words."""
    lines = []
    for one in found:
        if not one.pairs:
            lines.append(f"{one.dataset}: no confusion")
            continue
        a, b = one.pairs[0]
        said = []
        for method, shares in one.shares.items():
            count = int(one.images[a])
            interval = scipy.stats.binomtest(round(shares[a, b] * count), count).proportion_ci(method="wilson")
            ends = f"{100 * interval.low:.0f} to {100 * interval.high:.0f}"
            said.append(f"{method_title(method)} {100 * shares[a, b]:.0f} %, {ends}")
        lines.append(f"{one.dataset}: {one.classes[a]} as {one.classes[b]} ({'; '.join(said)})")
    return (
        "what is confused most, and in what share of the true class's test images, with the 95 % interval over "
        f"them: {'. '.join(lines)}."
    )
