"""results/figures/neighbours: test images and their nearest others, by z, by the frozen model's features, by pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diffsiam.evaluation import heads
from diffsiam.report.figures import literal, method_title, mosaic

Arrays = Mapping[str, np.ndarray]  # of `diffsiam.evaluation.sheets.neighbours`

NEEDED = ("method", "names", "queries", "images", "same", "labels", "agreement", "ci95", "chance", "tests", "classes")
_WIDTH, _LARGEST = 9.0, 0.6  # inches: the figure, an image at most
_SAME = "#2ca02c"  # frame of a neighbour of the same class


def title(method: str) -> str:
    """The method as figures call it, or what stands in place of one."""
    return "Pixels" if method == heads.PIXELS else method_title(method)


def draw(records: Sequence[Arrays], dataset: str) -> Figure:
    """A row for each query, which stands at the left; a block of columns for each encoder, nearest first."""
    first = records[0]
    rows, shown = first["images"].shape[:2]
    gap, label, head, foot = 0.12, 1.0, 0.8, 0.3
    tile = min(_LARGEST, (_WIDTH - label - gap * (len(records) + 1)) / (1 + (shown - 1) * len(records)))
    width = label + tile * (1 + (shown - 1) * len(records)) + gap * (len(records) + 1)
    width, height = max(width, 6.0), head + rows * tile + foot
    fig = Figure(figsize=(width, height))
    fig.text(0.5, 1 - 0.18 / height, f"Nearest test images: {dataset}", ha="center", va="center", fontsize=10)
    blocks: list[tuple[str, np.ndarray, Arrays | None]] = [("query", first["images"][:, :1], None)]
    blocks += [(title(str(a["method"])), a["images"][:, 1:], a) for a in records]
    left = label
    for name, images, record in blocks:
        wide = tile * images.shape[1]
        ax = fig.add_axes((left / width, foot / height, wide / width, rows * tile / height))
        picture = mosaic(images)
        ax.imshow(picture, interpolation="nearest", aspect="auto")
        ax.set(xticks=[], yticks=[], frame_on=False)
        ax.set_title(name if record is None else f"{name}\n{_agreement(record)}", fontsize=7.5)
        if record is None:
            middles = (np.arange(rows) + 0.5) * picture.shape[0] / rows
            for y, text in zip(middles, _labels(record=first), strict=True):
                ax.text(-0.1 * picture.shape[1], y, text, ha="right", va="center", fontsize=7)
        elif bool(record["classes"]):
            _frame(ax, record["same"], images)
        left += wide + gap
    fig.text(0.5, 0.12 / height, _meaning(first), ha="center", va="center", fontsize=7)
    return fig


def _frame(ax: Any, same: np.ndarray, images: np.ndarray) -> None:
    """A frame around each image of the mosaic that ``same`` (Q, K) says is of the same class."""
    columns, side = images.shape[1:3]
    gap = (ax.images[0].get_array().shape[1] - columns * side) // max(columns - 1, 1)
    for row, column in np.argwhere(same == 1):
        place = column * (side + gap) - 0.5, row * (side + gap) - 0.5
        ax.add_patch(Rectangle(place, side, side, fill=False, edgecolor=_SAME, linewidth=1.6, clip_on=False))


def _labels(record: Arrays) -> list[str]:
    """Number and class of each query."""
    names = [f"image {i}" for i in record["queries"]]
    if bool(record["classes"]):
        classes = [literal(str(record["names"][k])[:16]) for k in record["labels"][:, 0]]
        names = [f"{known}\n{text}" for known, text in zip(classes, names, strict=True)]
    return names


def _agreement(record: Arrays) -> str:
    """Of all test images."""
    if np.isnan(record["agreement"]):
        return ""
    return f"{100 * record['agreement']:.1f} ± {100 * record['ci95']:.1f} % agree"


def _meaning(record: Arrays) -> str:
    if np.isnan(record["agreement"]):
        return "Nothing is known of these images that neighbours could agree in."
    what = "class" if bool(record["classes"]) else "attributes"
    framed = "framed: of the query's class. " if bool(record["classes"]) else ""
    chance = f"by chance {100 * record['chance']:.1f} %"
    return f"{framed}% agree: neighbours of all test images with the same {what}, {chance}."


def shows(records: Sequence[Arrays]) -> str:
    """In what share of its nearest an image finds its own labels, by encoder, in words."""
    first = records[0]
    if np.isnan(first["agreement"]):
        return "nothing is known of these images that neighbours could agree in; the pictures alone tell."
    what = "are of its class" if bool(first["classes"]) else "have each of its attributes"
    said = ", ".join(f"{title(str(a['method']))} {_agreement(a).removesuffix(' % agree')} %" for a in records)
    return (
        f"of the {first['images'].shape[1] - 1} nearest of each of {first['tests']} test images, the share that "
        f"{what}, ± half of a 95 % interval over test images: {said}; of images at random "
        f"{100 * first['chance']:.1f} %."
    )
