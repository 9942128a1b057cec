"""results/figures/factors: which codes of a representation carry which known factor, for every method on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.training import methods

_NOTHING = "nothing was measured"
_COLUMNS = 4  # panels beside each other, that can be read where a README shows them


def read(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Records of `diffsiam.evaluation.disentanglement`, in the order of ``files``."""
    return [runtime.read_json(path) for path in files.values()]


def matrix(record: Mapping[str, Any]) -> np.ndarray:
    """R (N, F): the importance of each code for each factor, a factor's summing to 1: of all numbers of the codes where
    these were measured, else of their first principal components."""
    found = record["importances"]
    return np.array(found.get("block", found["codes"]))


def draw(records: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each method, those of a data set in rows of their own; all on one scale of grey."""
    datasets = list(dict.fromkeys(r["pretrain"] for r in records))
    if not datasets:
        fig = Figure(figsize=(6, 1))
        fig.text(0.5, 0.5, f"Codes and factors: {_NOTHING}.", ha="center")
        return fig
    lines = []
    for name in datasets:
        own = [r for r in records if r["pretrain"] == name]
        lines += [own[i : i + _COLUMNS] for i in range(0, len(own), _COLUMNS)]
    heights = [1.9 + 0.11 * max(r["codes"] for r in line) for line in lines]
    columns = max(map(len, lines))
    fig = Figure(figsize=(1.2 + 1.9 * columns, 0.6 + sum(heights)), layout="constrained")
    panels = fig.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    top = max(matrix(r).max() for r in records)
    for line, axes in zip(lines, panels, strict=True):
        for record, ax in zip(line, axes, strict=False):
            shown = ax.imshow(
                matrix(record), cmap="Greys", vmin=0, vmax=top or 1, aspect="auto", interpolation="nearest"
            )
            ax.set_title(f"{methods.lookup(record['method']).title}\n{scores(record)}", fontsize=7)
            ax.set_xticks(range(len(record["factors"])), list(record["factors"]), rotation=90, fontsize=7)
            ax.tick_params(axis="y", labelsize=6)
        axes[0].set_ylabel(f"{line[0]['pretrain']}: code or segment", fontsize=8)
        for ax in axes[len(line) :]:
            ax.axis("off")
    scale = fig.colorbar(shown, ax=panels, shrink=0.6)
    scale.ax.tick_params(labelsize=7)
    scale.set_label("share of a factor's importance", fontsize=8)
    fig.suptitle("Which codes carry which factor", fontsize=10)
    return fig


def scores(record: Mapping[str, Any]) -> str:
    """DCI and FactorVAE score, each with its floor: the one is never shown without the other."""
    found = record["scores"]
    words = {"dci": "DCI", "factorvae": "FactorVAE"}
    return "\n".join(f"{word} {_number(found[n])} (floor {_number(found[f'{n}_floor'])})" for n, word in words.items())


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def shows(records: Sequence[Mapping[str, Any]]) -> str:
    """The code that carries most of each factor, and how much of it, in words."""
    lines = []
    for record in records:
        r, names = matrix(record), list(record["factors"])
        largest = ", ".join(f"{name} {r[:, k].argmax()} ({100 * r[:, k].max():.0f} %)" for k, name in enumerate(names))
        title = methods.lookup(record["method"]).title
        lines.append(f"{title} on {record['pretrain']}, {scores(record).replace(chr(10), ', ')}: {largest}")
    found = ". ".join(lines) or _NOTHING
    return f"by method, the code (from 0) that carries most of each factor, and its share of the importance: {found}."
