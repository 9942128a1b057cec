"""results/figures/frozen_grid: what each block of the frozen diffusion model tells, by the noise of the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diffsiam import runtime


def read(files: Mapping[str, Path]) -> dict[str, Any]:
    """The record of row ``frozen_dm``, the only one of ``files``."""
    (path,) = files.values()
    record = runtime.read_json(path)
    if not record.get("grid"):
        raise runtime.damaged(path, "holds no grid of blocks and levels, of which this figure is drawn")
    return record


def draw(record: Mapping[str, Any], dataset: str) -> Figure:
    """Validation scores as a table in grey, blocks from the bottom up, levels from left to right; the chosen framed."""
    grid = record["grid"]
    scores = np.array(grid["scores"])
    blocks, levels = scores.shape
    fig = Figure(figsize=(2.6 + 0.62 * levels, 1.4 + 0.3 * blocks), layout="constrained")
    ax = fig.subplots()
    shown = ax.imshow(scores, cmap="Greys", aspect="auto", origin="lower")
    middle = (scores.min() + scores.max()) / 2
    for (block, level), value in np.ndenumerate(scores):
        ax.text(
            level, block, f"{value:.1f}", ha="center", va="center", color="w" if value > middle else "k", fontsize=7
        )
    place = grid["levels"].index(record["level"]) - 0.5, record["block"] - 1.5
    ax.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="C3", linewidth=2))
    ax.set_xticks(range(levels), list(map(str, grid["levels"])))
    ax.set_yticks(range(blocks), [f"{i} ({width})" for i, width in enumerate(grid["widths"], start=1)])
    ax.tick_params(labelsize=7)
    ax.set_xlabel("noise level t of the images", fontsize=8)
    ax.set_ylabel("block on the way up (channels)", fontsize=8)
    bar = fig.colorbar(shown, ax=ax)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("validation score (%)", fontsize=8)
    ax.set_title(f"The frozen diffusion model as an encoder: {dataset}", fontsize=9)
    return fig


def shows(record: Mapping[str, Any]) -> str:
    """The chosen pair, its score and the range of all, in words."""
    scores = np.array(record["grid"]["scores"])
    return (
        f"block {record['block']} of {len(scores)}, {record['dim']} channels, at t = {record['level']} tells the most, "
        f"{scores.max():.1f} % of the validation images; all pairs lie between {scores.min():.1f} and "
        f"{scores.max():.1f} %, the last block between {scores[-1].min():.1f} and {scores[-1].max():.1f} %."
    )
