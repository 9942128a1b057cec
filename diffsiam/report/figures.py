"""The thesis's figures, as PNG (300 dpi) and PDF, from stored arrays, histories and the networks' own configurations.

Nothing is sampled here: `diffsiam.generation.figures` says what the arrays hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report import frozen_grid
from diffsiam.report.save import save
from diffsiam.training import methods

_TILE = 0.62  # inches
_DENOISE = ("images", "noisy", "originals", "timesteps")
_COUNTERFACTUAL = ("images", "reverse", "sources", "targets", "ranges", "scales", "indices")
_MANIPULATION = ("images", "originals", "attributes", "dims", "masked", "scales", "indices")
_GAP = 2 / 32  # white line between two images, as a share of an image


@dataclass(frozen=True)
class Inputs:
    """What one figure is drawn from.

    Attributes:
        dataset: the data set really used; it stands in the title.
        files: by name: methods for arrays and histories, ``representation`` and ``diffusion`` for config.json.
        ranges: the early, middle and late segments of Figure 4.2.
    """

    dataset: str
    files: Mapping[str, Path]
    ranges: Sequence[tuple[int, int]] = ()

    def arrays(self, needed: Sequence[str] = ()) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of every method; a `UserError` where one of those ``needed`` is not among them."""
        return {name: _load(path, needed) for name, path in self.files.items()}


def run(number: str, inputs: Inputs, out: Path) -> None:
    """Draw one figure.

    Args:
        number: "1_1", "3_1", "4_1" to "4_9", or a word of `OWN`.
        out: the .png; the .pdf is written beside it.
    Raises:
        UserError: no such figure; an input is missing or is not what this figure is drawn from.
    """
    if number not in (known := FIGURES | OWN):
        raise UserError(f"figure {number!r}: no such figure. Figures: {', '.join(known)}.")
    save(known[number](inputs), out)


def _load(path: Path, needed: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = runtime.read_arrays(path)
    if missing := [name for name in needed if name not in arrays]:
        problem = f"lacks {', '.join(missing)}, of which this figure is drawn; met {', '.join(arrays)}"
        raise runtime.damaged(path, problem)
    return arrays


# ------------------------------------------------------------------------------------------------------ grids
def mosaic(images: np.ndarray) -> np.ndarray:
    """(rows, columns, H, W, 3) uint8 as one picture, white lines between the images."""
    rows, columns, height, width, _ = images.shape
    gap = max(1, round(_GAP * height))
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            top, left = r * (height + gap), c * (width + gap)
            out[top : top + height, left : left + width] = images[r, c]
    return out


@dataclass(frozen=True)
class Grid:
    """Mosaics in rows and columns, with room for text around them.

    Attributes:
        blocks: [row][column], each (rows, columns, H, W, 3); all of one shape.
        left: label of each row; lines are separated by newlines.
        above: label of each column of blocks, where there are any.
        ticks: labels above the images within a block, where there are any.
    """

    title: str
    blocks: Sequence[Sequence[np.ndarray]]
    left: Sequence[str]
    above: Sequence[str] = ()
    ticks: Sequence[str] = ()

    def draw(self) -> Figure:
        """The figure; all lengths are inches."""
        rows, columns = len(self.blocks), len(self.blocks[0])
        inner_rows, inner_columns = self.blocks[0][0].shape[:2]
        width, height = inner_columns * _TILE, inner_rows * _TILE
        lines = [line for text in self.left for line in text.split("\n")]
        longest = max(5 if "$" in line else len(line) for line in lines)  # a formula is shorter than its source
        label, header, space = 0.15 + 0.075 * longest, 0.75, 0.14
        used = label + columns * (width + space)
        total = max(used, 0.085 * len(self.title)), header + rows * (height + space)
        margin = (total[0] - used) / 2
        fig = Figure(figsize=total)
        fig.text(0.5, 1 - 0.2 / total[1], self.title, ha="center", va="center", fontsize=10)
        for r, row in enumerate(self.blocks):
            bottom = total[1] - header - (r + 1) * height - r * space
            fig.text(
                (margin + 0.06) / total[0], (bottom + height / 2) / total[1], self.left[r], va="center", fontsize=8
            )
            for c, block in enumerate(row):
                left = margin + label + c * (width + space)
                ax = fig.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
                ax.imshow(mosaic(block), interpolation="nearest", aspect="auto")
                ax.axis("off")
                if r == 0:
                    self._head(ax, c, inner_columns)
        return fig

    def _head(self, ax: Axes, column: int, inner_columns: int) -> None:
        for i, text in enumerate(self.ticks):
            ax.annotate(
                text, ((i + 0.5) / inner_columns, 1), (0, 3), "axes fraction", "offset points", ha="center", fontsize=7
            )
        if self.above:
            ax.annotate(
                self.above[column], (0.5, 1), (0, 14), "axes fraction", "offset points", ha="center", fontsize=8
            )


def _size(images: np.ndarray) -> str:
    return f"{images.shape[-3]}x{images.shape[-2]}"


def method_title(name: str) -> str:
    """The method as tables and figures call it."""
    return methods.lookup(name).title


# ------------------------------------------------------------------------------------------------ the figures
def denoise(inputs: Inputs) -> Figure:
    """Figure 1.1: noisy images above, what the frozen diffusion model makes of them below."""
    (arrays,) = inputs.arrays(_DENOISE).values()
    rows = [np.stack([arrays["noisy"][i], arrays["images"][i]]) for i in sources(arrays)]
    firsts = [np.stack([arrays["originals"][i : i + 1]] * 2) for i in sources(arrays)]
    blocks = [[np.concatenate([first, row], axis=1)] for first, row in zip(firsts, rows, strict=True)]
    title = f"Attributes lost as noise grows: {inputs.dataset}, {_size(arrays['images'])}, frozen diffusion model"
    left = ["$\\mathbf{x}_t$\n\n\n\n$\\hat{\\mathbf{x}}_0$"] * len(blocks)
    return Grid(title, blocks, left, ticks=["original", *(f"t = {t}" for t in arrays["timesteps"])]).draw()


def counterfactual(inputs: Inputs, *, full: bool, names: Sequence[str] = ()) -> Figure:
    """Figures 4.1 to 4.4: per pair, source at the upper left going right, target at the lower right going left.

    Args:
        full: the row of all segments (Figures 4.3, 4.4), else the other ranges.
        names: what the thesis calls the ranges; these are then the inputs' ``ranges`` in this order.
    """
    arrays = inputs.arrays(_COUNTERFACTUAL)
    first = next(iter(arrays.values()))
    *parts, everything = map(tuple, first["ranges"].tolist())
    wanted = [everything] if full else list(inputs.ranges) if names else parts
    if missing := set(wanted) - {*parts, everything}:
        raise UserError(
            f"figures.early_middle_late: no pictures of the ranges {sorted(missing)} on {inputs.dataset}. Made are "
            f"those of generation.ranges: {parts}. Choose three of them, or add to them."
        )
    blocks, left = [], []
    for position, (start, stop) in enumerate(wanted):
        i = [*parts, everything].index((start, stop))
        for name, a in arrays.items():
            blocks.append([_both_ways(a, pair, i) for pair in range(len(a["sources"]))])
            words = [names[position]] if names else []
            words += [] if full else [f"{start}-{stop}"]
            left.append("\n".join(words + ([method_title(name)] if len(arrays) > 1 else [])))
    what = "all of z" if full else "ranges of segments"
    title = f"Counterfactuals on {what}: {inputs.dataset}, {_size(first['images'])}"
    if len(arrays) == 1:
        title += f", {method_title(next(iter(arrays)))}"
    above = [f"pair {i + 1}: test images {a} and {b}" for i, (a, b) in enumerate(first["indices"])]
    scales = first["scales"]
    return Grid(title, blocks, left, above, ["source", *(f"{s:g}" for s in scales)]).draw()


def _both_ways(arrays: Mapping[str, np.ndarray], pair: int, i: int) -> np.ndarray:
    """(2, 1 + scales, H, W, 3): the way there, and below it the way back from right to left."""
    there = [arrays["sources"][pair], *arrays["images"][pair, i]]
    back = [arrays["targets"][pair], *arrays["reverse"][pair, i]]
    return np.stack([np.stack(there), np.stack(back[::-1])])


def manipulation(inputs: Inputs, *, full: bool, side_by_side: bool = False) -> Figure:
    """Figures 4.5 to 4.7: each sample pushed along an attribute; scale 0 is the reconstruction.

    Args:
        full: the classifiers on all of z (Figure 4.7), else the masked ones.
        side_by_side: methods in columns (Figure 4.6), else in rows.
    """
    arrays = inputs.arrays(_MANIPULATION)
    first = next(iter(arrays.values()))
    rows = manipulated(first, full=full)
    samples = sources(first)
    blocks, left = [], []
    for i, attribute, dims in rows:
        label = f"{attribute}\n{'all' if full else dims} dim."
        if side_by_side:
            blocks.append([a["images"][i, s : s + 1] for a in arrays.values() for s in samples])
            left.append(label)
        else:
            for name, a in arrays.items():
                blocks.append([a["images"][i, s : s + 1] for s in samples])
                left.append(f"{label}\n{method_title(name)}")
    kind = "all of z" if full else "few dimensions of z"
    title = f"Manipulation along {kind}: {inputs.dataset}, {_size(first['images'])}"
    above = [f"test image {first['indices'][s]}" for s in samples]
    if side_by_side:
        above = [f"{method_title(name)}, {image}" for name in arrays for image in above]
    return Grid(title, blocks, left, above, [f"{s:+g}" if s else "0" for s in first["scales"]]).draw()


def sources(arrays: Mapping[str, np.ndarray]) -> range:
    """The samples that figures of single images show: the first image of every pair."""
    return range(0, len(arrays["originals"]), 2)


def manipulated(arrays: Mapping[str, np.ndarray], *, full: bool) -> list[tuple[int, str, int]]:
    """Rows of the arrays with their attribute and dimensions: the classifiers on all of z, or the masked ones."""
    rows = zip(arrays["attributes"], arrays["dims"], arrays["masked"], strict=True)
    return [(i, str(a), int(d)) for i, (a, d, masked) in enumerate(rows) if masked != full]


def training_history(path: Path) -> pd.DataFrame:
    """history.csv of a training with a diffusion term."""
    history = runtime.read_csv(path)
    if "diffusion" not in history:
        names = ", ".join(map(str, history))
        raise UserError(f"{path}: no column 'diffusion'; met {names}. Figure 4.9 needs a method with a diffusion term.")
    return history


def loss(inputs: Inputs) -> Figure:
    """Figure 4.9: the diffusion term of Eq. 3.11 over training, undetached and detached."""
    fig = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = fig.add_subplot()
    for (name, path), style in zip(inputs.files.items(), itertools.cycle(("-", "--"))):
        history = training_history(path)
        window = max(1, len(history) // 25)
        (line,) = ax.plot(history["step"], history["diffusion"], lw=0.5, alpha=0.4)
        smooth = history["diffusion"].rolling(window, min_periods=1).mean()
        ax.plot(history["step"], smooth, color=line.get_color(), ls=style, lw=1.6, label=method_title(name))
    ax.set(xlabel="step", ylabel="loss of Eq. 3.11, mean over pixels", title=f"Training loss: {inputs.dataset}")
    ax.set_yscale("log")
    ax.legend()
    return fig


def _architecture(inputs: Inputs) -> Figure:
    from diffsiam.report import drawings

    return drawings.architecture(
        inputs.dataset, drawings.shapes(inputs.files["representation"], inputs.files["diffusion"])
    )


def _strategies(inputs: Inputs) -> Figure:
    from diffsiam.report import drawings

    record: dict[str, Any] = runtime.read_json(inputs.files["representation"])
    return drawings.strategies(inputs.dataset, record["dim"], record["segments"])


def _factors(inputs: Inputs) -> Figure:
    from diffsiam.report import factors

    return factors.draw(factors.read(inputs.files))


def _swaps(inputs: Inputs) -> Figure:
    from diffsiam.report import swaps

    return swaps.draw([*inputs.arrays(swaps.NEEDED).values()])


def _neighbours(inputs: Inputs) -> Figure:
    from diffsiam.report import neighbours

    return neighbours.draw([*inputs.arrays(neighbours.NEEDED).values()], inputs.dataset)


def _embedding(inputs: Inputs) -> Figure:
    from diffsiam.report import embedding

    return embedding.draw([*inputs.arrays(embedding.NEEDED).values()], inputs.dataset)


def _segments_attributes(inputs: Inputs) -> Figure:
    from diffsiam.report import segments_attributes

    return segments_attributes.draw(segments_attributes.read(inputs.files))


def _confusion(inputs: Inputs) -> Figure:
    from diffsiam.report import confusion

    return confusion.draw(confusion.read(inputs.files))


def _accuracy_hours(inputs: Inputs) -> Figure:
    from diffsiam.report import accuracy_hours

    return accuracy_hours.draw(accuracy_hours.read(inputs.files, inputs.dataset), inputs.dataset)


FIGURES: dict[str, Callable[[Inputs], Figure]] = {
    "1_1": denoise,
    "3_1": _architecture,
    "4_1": lambda inputs: counterfactual(inputs, full=False),
    "4_2": lambda inputs: counterfactual(inputs, full=False, names=("Early", "Middle", "Late")),
    "4_3": lambda inputs: counterfactual(inputs, full=True),
    "4_4": lambda inputs: counterfactual(inputs, full=True),
    "4_5": lambda inputs: manipulation(inputs, full=False),
    "4_6": lambda inputs: manipulation(inputs, full=False, side_by_side=True),
    "4_7": lambda inputs: manipulation(inputs, full=True),
    "4_8": _strategies,
    "4_9": loss,
}
# Not the thesis's: files are named by the word alone.
OWN: dict[str, Callable[[Inputs], Figure]] = {
    "factors": _factors,
    "swaps": _swaps,
    "frozen_grid": lambda inputs: frozen_grid.draw(frozen_grid.read(inputs.files), inputs.dataset),
    "neighbours": _neighbours,
    "embedding": _embedding,
    "segments_attributes": _segments_attributes,
    "confusion": _confusion,
    "accuracy_hours": _accuracy_hours,
}
