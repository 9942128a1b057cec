"""results/figures/swaps: one code exchanged between two images, and one code alone guiding noise, for every method on
one page, each row with what it moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffsiam.report.figures import WIDTH, method_title, mosaic

Arrays = Mapping[str, np.ndarray]  # of `diffsiam.generation.swaps`

NEEDED = ("dataset", "method", "factors", "accuracy", "sources", "targets", "swap", "swap_moved", "swap_carried")
_NOTHING = "nothing was measured"
# Inches: an image, at most; a panel's images, where a method has many segments; labels left of them.
_TILE, _TALLEST, _LABEL = 0.45, 12.0, 1.75


class Panel(NamedTuple):
    """Images (rows, columns, H, W, 3) with a label for each row."""

    title: str
    images: np.ndarray
    labels: list[str]


def draw(records: Sequence[Arrays]) -> Figure:
    """A panel for each data set and method: swaps above, conditioning on one code alone below, where there is any."""
    if not records:
        fig = Figure(figsize=(6, 1))
        fig.text(0.5, 0.5, f"Swaps of codes: {_NOTHING}.", ha="center")
        return fig
    kinds = [[swapped(a) for a in records], [alone(a) for a in records if "partial" in a]]
    width = max(panel.images.shape[1] for panels in kinds for panel in panels)
    columns = min(len(records), max(1, int(WIDTH / (_LABEL + width * _TILE))))
    lines = [panels[i : i + columns] for panels in kinds for i in range(0, len(panels), columns)]
    heights = [max(len(panel.images) for panel in line) for line in lines]
    tile = min(_TILE, _TALLEST / max(heights))
    size = columns * (_LABEL + width * tile), 0.5 + sum(0.6 + height * tile for height in heights)
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for line, row in zip(lines, axes, strict=True):
        for i, ax in enumerate(row):
            _show(ax, line[i] if i < len(line) else None)
    fig.suptitle("One code exchanged, and one code alone" if kinds[1] else "One code exchanged", fontsize=10)
    return fig


def swapped(a: Arrays) -> Panel:
    """Target, source, the source's z sampled, then each code and all of them exchanged."""
    images = np.concatenate([a["targets"][None], a["sources"][None], a["swap"]])
    title = f"{_whose(a)}\nswap: the factor moved most, in what share; others"
    return Panel(title, images, ["target", "source", "no code", *_labels(a, "swap")])


def alone(a: Arrays) -> Panel:
    """The target, the frozen model's samples, then what each code, and all of them, make of the same noises."""
    target = np.full_like(a["partial"][:1], 255)
    target[0, 0] = a["partial_target"]
    title = f"{_whose(a)}\none code: the factor moved most, in what share; less the next"
    return Panel(title, np.concatenate([target, a["partial"]]), ["target", "no code", *_labels(a, "partial")])


def _whose(a: Arrays) -> str:
    return f"{method_title(str(a['method']))}, {a['dataset']}"


def _labels(a: Arrays, what: str) -> list[str]:
    """Of each code and of all of them: the factor that the code carries, and its two shares."""
    rows = [
        f"{c}: {str(a['factors'][int(factor)]).replace('_', ' ')} {_share(first)}; {_share(second)}"
        for c, (factor, first, second) in enumerate(a[f"{what}_carried"])
    ]
    return [*rows, f"all: {_share(a[f'{what}_moved'][-1])}"]


def _share(values: np.ndarray) -> str:
    """The mean of shares, of those that are known."""
    known = values[~np.isnan(values)]
    return f"{known.mean():.2f}" if known.size else "-"


def _show(ax: Axes, panel: Panel | None) -> None:
    if panel is None:
        ax.axis("off")
        return
    picture = mosaic(panel.images)
    ax.imshow(picture, interpolation="nearest")
    rows = len(panel.labels)
    ax.set_yticks((np.arange(rows) + 0.5) * picture.shape[0] / rows, panel.labels, fontsize=6)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.set_frame_on(False)
    ax.set_title(panel.title, fontsize=7)


def shows(records: Sequence[Arrays]) -> str:
    """How many factors each method's codes carry, and how cleanly, in words."""
    lines = []
    for a in records:
        words = [f"swaps {_summary(a, 'swap')}, all others {_share(a['swap_carried'][:, 2])}"]
        if "partial" in a:
            words.append(f"one code alone {_summary(a, 'partial')}, less the next {_share(a['partial_carried'][:, 2])}")
        lines.append(f"{_whose(a)}: {'; '.join(words)}. The classifier is right in {_accuracies(a)}")
    if not lines:
        return f"{_NOTHING}."
    return (
        "of the factor that each code moves most (chosen on half of the samples, measured on the other), the share of "
        f"samples in which it moved, mean over codes. {'. '.join(lines)}."
    )


def _summary(a: Arrays, what: str) -> str:
    carried = a[f"{what}_carried"]
    found = len(set(carried[:, 0].tolist()))
    return (
        f"{_share(carried[:, 1])} ({found} of {len(a['factors'])} factors; all codes {_share(a[f'{what}_moved'][-1])})"
    )


def _accuracies(a: Arrays) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in zip(a["factors"], a["accuracy"], strict=True))
