"""results/figures/segments_attributes: which segments of z tell which attribute, for every method with segments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.report.figures import literal, method_title

_COLUMNS = 2  # panels in a row
_BLANK = 1  # columns between the segments and all of z


def read(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Records of `diffsiam.evaluation.sheets.segments`, in the order of ``files``."""
    return [runtime.read_json(path) for path in files.values()]


def above(record: Mapping[str, Any]) -> np.ndarray:
    """(L, n + 2) points above chance: of each segment, then a blank, then of all of z."""
    ap, chance = np.array(record["ap"]).T, np.array(record["chance"])[:, None]
    blank = np.full((len(chance), _BLANK), np.nan)
    return np.hstack([ap - chance, blank, np.array(record["all"])[:, None] - chance])


def draw(records: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each data set and method, all on one scale of grey."""
    columns, rows = min(_COLUMNS, len(records)), math.ceil(len(records) / _COLUMNS)
    tall = max(len(r["attributes"]) for r in records)
    fig = Figure(figsize=(1.0 + 4.0 * columns, 0.6 + rows * (1.1 + 0.15 * tall)), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    top = max(np.nanmax(above(r)) for r in records)
    for ax, record in zip(axes.flat, records, strict=False):
        shown = _panel(ax, record, top)
    for ax in [*axes.flat][len(records) :]:
        ax.axis("off")
    scale = fig.colorbar(shown, ax=axes, shrink=0.6)
    scale.ax.tick_params(labelsize=7)
    scale.set_label("average precision above chance (points)", fontsize=8)
    fig.suptitle("Which segments tell which attribute", fontsize=10)
    return fig


def _panel(ax: Axes, record: Mapping[str, Any], top: float) -> Any:
    grid = above(record)
    count = grid.shape[1] - _BLANK - 1
    shown = ax.imshow(grid, cmap="Greys", vmin=0, vmax=max(top, 1e-6), aspect="auto", interpolation="nearest")
    best = np.argmax(grid[:, :count], axis=1)
    ax.plot(best, range(len(best)), "o", ms=3, mfc="C1", mec="white", mew=0.4)
    names = zip(record["attributes"], record["chance"], strict=True)
    ax.set_yticks(range(len(grid)), [f"{literal(name)} ({chance:.0f} %)" for name, chance in names], fontsize=6.5)
    ticks = range(0, count, math.ceil(count / 8))
    ax.set_xticks([*ticks, grid.shape[1] - 1], [*(str(k + 1) for k in ticks), "all"], fontsize=7)
    ax.set_xlabel("segment of z", fontsize=7.5)
    ax.set_title(f"{method_title(record['method'])}, {record['dataset']}", fontsize=8.5)
    return shown


def shows(records: Sequence[Mapping[str, Any]]) -> str:
    """Whether attributes lie in different segments, as one number for each method, in words."""
    lines = []
    for r in records:
        low, high = r["ci95"]
        verdict = "they lie apart" if low > 0 else "that they lie apart is not seen"
        best = np.argmax(np.array(r["ap"]), axis=0) + 1
        listed = ", ".join(f"{name} {k}" for name, k in zip(r["attributes"], best, strict=True))
        lines.append(
            f"{method_title(r['method'])} on {r['dataset']}: {r['high']} less {r['low']} {r['difference']:+.3f} "
            f"({low:+.3f} to {high:+.3f}), {verdict}; best segments of {len(r['ap'])}: {listed}"
        )
    return (
        "the centre of an attribute is the mean place, from 0 (first segment, fine) to 1 (last, coarse), of the "
        "segments that tell it. Difference between the attributes of the highest and of the lowest centre, chosen on "
        "half of the test images and measured on the other half, with its 95 % interval over these. "
        f"{'. '.join(lines)}."
    )
