"""Labelled strips of `diffsiam restore` and `diffsiam samples`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from diffsiam.report.figures import WIDTH, method_title

Arrays = Mapping[str, np.ndarray]

# Inches: labels of rows, the title, labels of columns, a line below an image, a gap between two.
_LABEL, _TITLE, _HEAD, _LINE, _GAP = 0.75, 0.3, 0.33, 0.2, 0.06
_COLUMNS = 8  # of samples
_NARROWEST = 1.0  # inches of a column, for its label to fit; more columns than WIDTH holds make a wider strip


def restored(arrays: Arrays, method: str, dataset: str) -> Figure:
    """The arrays of `diffsiam.generation.pictures.restored`: a row for each step of noise, from the picture
    to what is made of it given segments of z; the error under each image."""
    above = ["picture", "under noise", "diffusion model\nalone", *(_given(a, b) for a, b in arrays["ranges"])]
    tiles = [
        [
            (arrays["original"], ""),
            (noisy, ""),
            *((image, f"error {e:.1f}") for image, e in zip(made, errors, strict=True)),
        ]
        for noisy, made, errors in zip(arrays["noisy"], arrays["images"], arrays["errors"], strict=True)
    ]
    title = f"What noise takes, and what segments of z give back: {method_title(method)}, trained on {dataset}"
    return _draw(title, tiles, above, [f"step {t}" for t in arrays["levels"]])


def samples(arrays: Arrays, dataset: str) -> Figure:
    """The arrays of `diffsiam.generation.samples.draw`: each sample with its distance to the nearest training
    image below it; one that copies such an image is left white."""
    shown = [
        (np.full_like(image, 255) if copied else image, f"{distance:.1f}{' (a copy)' if copied else ''}")
        for image, distance, copied in zip(*(arrays[k] for k in ("images", "distances", "copied")), strict=True)
    ]
    rows = [shown[i : i + _COLUMNS] for i in range(0, len(shown), _COLUMNS)]
    title = (
        f"Samples of the diffusion model of {dataset}, and their distances to the nearest training image "
        f"(test images: {np.median(arrays['reference']):.1f})"
    )
    return _draw(title, rows)


def _draw(
    title: str, tiles: Sequence[Sequence[tuple[np.ndarray, str]]], above: Sequence[str] = (), left: Sequence[str] = ()
) -> Figure:
    """Rows of images, each with what stands below it; names of columns and rows where there are any."""
    label, head = _LABEL if left else 0.0, _TITLE + (_HEAD if above else 0.0)
    tile = max((WIDTH - label) / max(map(len, tiles)), _NARROWEST)
    width = label + tile * max(map(len, tiles))
    height = head + len(tiles) * (tile + _LINE)
    fig = Figure(figsize=(width, height))
    fig.text(0.5, 1 - 0.15 / height, title, ha="center", va="center", fontsize=10)
    for r, row in enumerate(tiles):
        top = head + r * (tile + _LINE)
        if left:
            fig.text(0.06 / width, 1 - (top + tile / 2) / height, left[r], va="center", fontsize=8)
        for c, (image, below) in enumerate(row):
            side = tile - _GAP
            x, y = label + c * tile + _GAP / 2, top + side
            ax = fig.add_axes((x / width, 1 - y / height, side / width, side / height))
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=[], yticks=[], frame_on=False)
            ax.set_xlabel(below, fontsize=8, labelpad=2)
            if r == 0 and above:
                ax.set_title(above[c], fontsize=8, pad=3)
    return fig


def _given(first: int, end: int) -> str:
    """A range of segments as a column's label, counted from 1 as the thesis does."""
    if end - first < 2:
        return f"given\nsegment {end}" if end > first else "given\nno segment"
    return f"given segments\n{first + 1} to {end}"
