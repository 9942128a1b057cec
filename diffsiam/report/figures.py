"""The thesis's figures, as PNG (300 dpi) and PDF, from stored arrays, histories and the networks' own configurations.

Nothing is sampled here: `diffsiam.generation.figures` says what the arrays hold.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.report import frozen_grid
from diffsiam.report.save import save
from diffsiam.training import methods

WIDTH = 9.0  # inches of a grid; shown 900 pixels wide, as a README is, text of 7.5 points has letters of 9 pixels
_SMALLEST, _LARGEST = 0.4, 0.8  # inches, an image of a grid
_SPACE = 0.1  # inches between two mosaics
_TEXT, _LETTER, _LINE = 7.5, 0.064, 0.13  # points of a label; inches, a letter and a line of it
_DENOISE = ("images", "noisy", "originals", "timesteps")
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
    """Mosaics in rows and columns, with room for text around them; columns that are too many for its width stand below
    the others, so that images and letters are never too small.

    Attributes:
        note: below the title, what is to be known to read it.
        blocks: [row][column], each (rows, columns, H, W, 3); all of one shape.
        left: label of each row; lines are separated by newlines.
        changes: [row][column], how much changed; those of the columns beside a row end its label.
        above: label of each column of blocks, where there are any.
        ticks: labels above the images within a block, of as many lines as they like.
    """

    title: str
    note: str
    blocks: Sequence[Sequence[np.ndarray]]
    left: Sequence[str]
    above: Sequence[str] = ()
    ticks: Sequence[str] = ()
    changes: Sequence[Sequence[str]] = ()

    def draw(self) -> Figure:
        """The figure; all lengths are inches, heights from the top."""
        columns, (rows, images) = len(self.blocks[0]), self.blocks[0][0].shape[:2]
        labels = [self._label(r, range(columns)) for r in range(len(self.blocks))]
        label = 0.12 + _LETTER * max(map(_letters, labels))
        fitting = [n for n in range(1, columns + 1) if self._tile(n, label) >= self._least()]
        side = max(fitting, default=1)
        tile = min(max(self._tile(side, label), _SMALLEST), _LARGEST)
        width, height = images * tile, rows * tile
        step = max(height + _SPACE, _LINE * (1 + max(text.count("\n") + 1 for text in labels)))
        head = _LINE * (1 + bool(self.above) + max(text.count("\n") + 1 for text in self.ticks))
        title, note = textwrap.wrap(self.title, 100), textwrap.wrap(self.note, 145)
        top = 0.15 + 0.18 * len(title) + _LINE * len(note)
        bands = [range(first, min(first + side, columns)) for first in range(0, columns, side)]
        used = label + side * (width + _SPACE)
        page = _Page(max(WIDTH, used), top + len(bands) * (head + len(self.blocks) * step) + 0.05)
        page.write(page.width / 2, 0.08, "\n".join(title), ha="center", va="top", fontsize=10)
        page.write(page.width / 2, 0.12 + 0.18 * len(title), "\n".join(note), ha="center", va="top")
        margin = (page.width - used) / 2
        for i, band in enumerate(bands):
            y = top + i * (head + len(self.blocks) * step) + head
            for r, row in enumerate(self.blocks):
                middle = y + r * step + step / 2
                page.write(margin + 0.06, middle, self._label(r, band), va="center")
                for place, c in enumerate(band):
                    left = margin + label + place * (width + _SPACE)
                    page.show(left, middle - height / 2, width, height, row[c])
                    if r == 0:
                        self._head(page, left, middle - height / 2, tile, c)
        return page.figure

    def _label(self, row: int, band: range) -> str:
        changes = [self.changes[row][c] for c in band] if self.changes else []
        return self.left[row] + (f"\nchange {' | '.join(changes)}" if changes else "")

    def _tile(self, side: int, label: float) -> float:
        """Side of an image where ``side`` blocks stand beside each other."""
        return ((WIDTH - label) / side - _SPACE) / self.blocks[0][0].shape[1]

    def _least(self) -> float:
        """Side of an image that the labels above leave room for, and the eye."""
        return max(_SMALLEST, _LETTER * max(map(_letters, self.above), default=0) / self.blocks[0][0].shape[1])

    def _head(self, page: _Page, left: float, y: float, tile: float, column: int) -> None:
        for i, text in enumerate(self.ticks):
            page.write(left + (i + 0.5) * tile, y - 0.03, text, ha="center", va="bottom")
        if self.above:
            lines = max(text.count("\n") + 1 for text in self.ticks)
            page.write(left + len(self.ticks) * tile / 2, y - 0.06 - _LINE * lines, self.above[column], ha="center")


class _Page:
    """A figure that is filled by inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height, self.figure = width, height, Figure(figsize=(width, height))

    def write(self, x: float, y: float, text: str, **how: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, **{"fontsize": _TEXT, **how})

    def show(self, left: float, top: float, width: float, height: float, block: np.ndarray) -> None:
        place = left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height
        ax = self.figure.add_axes(place)
        ax.imshow(mosaic(block), interpolation="nearest", aspect="auto")
        ax.axis("off")


def _letters(text: str) -> int:
    """Of the longest line; a formula is shorter than its source."""
    return max(len(re.sub(r"\\[a-z]+|[${}_]", "", line)) for line in text.split("\n"))


def literal(name: str) -> str:
    """A class or an attribute as it is called: two dollar signs in a name would be a formula to matplotlib."""
    return name.replace("$", r"\$")


def size(images: np.ndarray) -> str:
    """Height and width of images (..., H, W, 3)."""
    return f"{images.shape[-3]}x{images.shape[-2]}"


def method_title(name: str) -> str:
    """The method as tables and figures call it."""
    return methods.lookup(name).title


# ------------------------------------------------------------------------------------------------ the figures
def denoise(inputs: Inputs) -> Figure:
    """Figure 1.1: noisy images above, what the frozen diffusion model makes of them below, and what that lacks."""
    from diffsiam.report import edits

    (arrays,) = inputs.arrays(_DENOISE).values()
    error = edits.difference(arrays["images"], arrays["originals"][:, None])
    times = edits.gain(error)
    blocks: list[list[np.ndarray]] = []
    left: list[str] = []
    for i in edits.sources(arrays):
        original, none = arrays["originals"][i], np.full_like(arrays["originals"][i], 255)
        rows = {
            "$\\mathbf{x}_t$": [original, *arrays["noisy"][i]],
            "$\\hat{\\mathbf{x}}_0$": [original, *arrays["images"][i]],
            "lost": [none, *edits.amplified(error[i], times)],
        }
        blocks += [[np.stack(row)[None]] for row in rows.values()]
        left += rows
    title = f"Attributes lost as noise grows: {inputs.dataset}, {size(arrays['images'])}, frozen diffusion model"
    note = f"Lost: difference of $\\hat{{\\mathbf{{x}}}}_0$ from the original in each colour, x{times}."
    return Grid(title, note, blocks, left, ticks=["original", *(f"t = {t}" for t in arrays["timesteps"])]).draw()


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


def _counterfactual(inputs: Inputs, *, full: bool, names: Sequence[str] = ()) -> Figure:
    from diffsiam.report import edits

    return edits.counterfactual(inputs, full=full, names=names)


def _manipulation(inputs: Inputs, *, full: bool, side_by_side: bool = False) -> Figure:
    from diffsiam.report import edits

    return edits.manipulation(inputs, full=full, side_by_side=side_by_side)


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
    "4_1": lambda inputs: _counterfactual(inputs, full=False),
    "4_2": lambda inputs: _counterfactual(inputs, full=False, names=("Early", "Middle", "Late")),
    "4_3": lambda inputs: _counterfactual(inputs, full=True),
    "4_4": lambda inputs: _counterfactual(inputs, full=True),
    "4_5": lambda inputs: _manipulation(inputs, full=False),
    "4_6": lambda inputs: _manipulation(inputs, full=False, side_by_side=True),
    "4_7": lambda inputs: _manipulation(inputs, full=True),
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
