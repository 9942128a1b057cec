"""results/figures/embedding: test features in two dimensions, a panel for each encoder, coloured by what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffsiam.report.figures import literal
from diffsiam.report.neighbours import title

Arrays = Mapping[str, np.ndarray]  # of `diffsiam.evaluation.sheets.embedding`

NEEDED = ("method", "names", "classes", "xy", "shown", "trustworthiness", "perplexity")
_COLUMNS, _PANEL = 3, 2.9  # panels in a row; inches
_COLOURS = 10  # classes that are told apart; the others are grey
_REST = "0.8"


def groups(record: Arrays) -> tuple[list[str], np.ndarray]:
    """Names of the colours and the colour of each point, (P,), -1 for grey: the most frequent classes; or with and
    without the attribute that is nearest to half of the images."""
    shown, names = record["shown"], [str(name) for name in record["names"]]
    if not shown.shape[1]:
        return [], np.full(len(shown), -1)
    if not bool(record["classes"]):
        chosen = int(np.abs(shown.mean(axis=0) - 0.5).argmin())
        return [f"not {names[chosen]}", names[chosen]], shown[:, chosen]
    counts = np.bincount(shown[:, 0], minlength=len(names))
    kept = np.sort(np.argsort(-counts, kind="stable")[:_COLOURS])
    place = np.full(len(names), -1)
    place[kept] = np.arange(len(kept))
    return [names[k] for k in kept], place[shown[:, 0]]


def draw(records: Sequence[Arrays], dataset: str) -> Figure:
    """Panels in rows; one legend for all."""
    names, colour = groups(records[0])
    columns, rows = min(_COLUMNS, len(records)), math.ceil(len(records) / _COLUMNS)
    lines = math.ceil((len(names) + 1) / 4)
    size = max(_PANEL * columns, 6.0), 0.5 + rows * (_PANEL + 0.2) + 0.22 * lines
    fig = Figure(figsize=size, layout="constrained")
    axes = [*fig.subplots(rows, columns, squeeze=False).flat]
    palette = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for ax, record in zip(axes, records, strict=False):
        for k in range(-1, len(names)):
            xy = record["xy"][colour == k]
            ax.scatter(*xy.T, s=4, color=_REST if k < 0 else palette[k], linewidths=0, rasterized=True)
        kept = f"trustworthiness {float(record['trustworthiness']):.2f}"
        ax.set_title(f"{title(str(record['method']))}\n{kept}", fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.set_box_aspect(1)
    for ax in axes[len(records) :]:
        ax.axis("off")
    shown = [(name, palette[k]) for k, name in enumerate(names)] + ([("others", _REST)] if (colour < 0).any() else [])
    marks = [Line2D([], [], ls="", marker="o", ms=5, color=c, label=literal(name)) for name, c in shown]
    fig.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    fig.suptitle(f"{len(colour)} test images on a map: {dataset}", fontsize=10)
    return fig


def shows(records: Sequence[Arrays]) -> str:
    """How far to trust each map, and what its colours are, in words."""
    names, colour = groups(records[0])
    kept = ", ".join(f"{title(str(a['method']))} {float(a['trustworthiness']):.2f}" for a in records)
    what = f"coloured by {', '.join(names)}" if names else "without colours, since nothing is known of them"
    others = f" ({(colour < 0).sum()} of other classes in grey)" if names and (colour < 0).any() else ""
    return (
        f"{len(colour)} test images, t-SNE at perplexity {float(records[0]['perplexity']):g}, {what}{others}. "
        f"Trustworthiness, 1 where all neighbours on the map are neighbours in the features: {kept}."
    )
