"""What a run's own figures show, in numbers: the second half of each caption of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from diffsiam import runtime
from diffsiam.report import (
    accuracy_hours,
    confusion,
    edits,
    embedding,
    factors,
    frozen_grid,
    neighbours,
    segments_attributes,
    swaps,
)
from diffsiam.report.figures import Inputs, method_title, training_history


def write(number: str, inputs: Inputs, out: Path) -> None:
    """Write what this run's figure ``number`` shows to ``out``, reStructuredText."""
    runtime.write_text(out, f"**This run** ({inputs.dataset}): {(SHOWS | OWN)[number](inputs)}\n")


def change(images: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference in grey levels (0 to 255)."""
    return float(np.abs(images.astype(np.float32) - reference.astype(np.float32)).mean())


def _denoise(inputs: Inputs) -> str:
    (a,) = inputs.arrays().values()
    errors = [change(a["images"][:, i], a["originals"]) for i in range(len(a["timesteps"]))]
    rises = "grows with every step shown" if errors == sorted(errors) else "does not grow with every step shown"
    listed = ", ".join(f"t = {t}: {e:.1f}" for t, e in zip(a["timesteps"], errors, strict=True))
    return f"the distance of the reconstruction from the original {rises} (mean grey levels: {listed})."


def _ranges(inputs: Inputs) -> str:
    """How near each range comes to the other image, with x_T exchanged and without."""
    lines = []
    for name, a in inputs.arrays().items():
        kinds: dict[bool, list[str]] = {}
        for row, i in edits.rows(a).items():
            words = "no segment" if row[:2] == (0, 0) else f"{row.start}-{row.stop}"
            kinds.setdefault(row.exchanged, []).append(f"{words}: {_distance(a, i):.1f}")
        for exchanged, parts in kinds.items():
            kind = "x_T exchanged" if exchanged else "own x_T"
            lines.append(f"{method_title(name)}, {kind}: {', '.join(parts)}")
    return f"{_DISTANCE.format(a['scales'][-1])}, by range of segments: {'. '.join(lines)}."


_DISTANCE = "mean grey levels between the picture at scale {:g} and the other image, both ways"


def _distance(arrays: Mapping[str, np.ndarray], i: int) -> float:
    there = change(arrays["images"][:, i, -1], arrays["targets"])
    return (there + change(arrays["reverse"][:, i, -1], arrays["sources"])) / 2


def _whole(inputs: Inputs) -> str:
    """How near all of z comes to the other image."""
    arrays = inputs.arrays()
    words = []
    for name, a in arrays.items():
        levels = {row: f"{_distance(a, i):.1f}" for row, i in edits.rows(a).items()}
        for row in (row for row in levels if row[:2] == edits.everything(a)):
            alone = levels.get(edits.Row(0, 0, True)) if row.exchanged else None
            kind = "x_T exchanged" if row.exchanged else "own x_T"
            words.append(f"{method_title(name)}, {kind}: {levels[row]}{f' ({alone} by x_T alone)' if alone else ''}")
    return f"{_DISTANCE.format(next(iter(arrays.values()))['scales'][-1])}: {', '.join(words)}."


def _manipulation(inputs: Inputs, *, full: bool) -> str:
    words = []
    for name, a in inputs.arrays().items():
        middle = int(np.abs(a["scales"]).argmin())
        ends = [
            change(a["images"][i][:, e], a["images"][i][:, middle])
            for i, *_ in edits.manipulated(a, full=full)
            for e in (0, -1)
        ]
        words.append(f"{method_title(name)} {np.mean(ends):.1f}")
    return (
        f"mean grey levels between the ends (scales {a['scales'][0]:g}, {a['scales'][-1]:g}) and the picture at scale "
        f"{a['scales'][middle]:g}: "
        f"{', '.join(words)}. Whether the change is the attribute's: the numbers of results/generation.csv."
    )


def _loss(inputs: Inputs) -> str:
    words = []
    for name, path in inputs.files.items():
        history = training_history(path)
        last = history["diffusion"].tail(max(1, len(history) // 10)).mean()
        words.append(f"{method_title(name)} {last:.4g}")
    steps = int(history["step"].iloc[-1])
    return f"loss of Eq. 3.11, mean over the last tenth of {steps} steps: {', '.join(words)}."


def _shapes(inputs: Inputs) -> str:
    record = runtime.read_json(inputs.files["representation"])
    return (
        f"drawn from the networks as trained: width {record['encoder_width']}, d = {record['dim']}, "
        f"n = {record['segments']}, images of {record['image_size']}x{record['image_size']}."
    )


SHOWS: dict[str, Callable[[Inputs], str]] = {
    "1_1": _denoise,
    "3_1": _shapes,
    "4_1": _ranges,
    "4_2": _ranges,
    "4_3": _whole,
    "4_4": _whole,
    "4_5": lambda inputs: _manipulation(inputs, full=False),
    "4_6": lambda inputs: _manipulation(inputs, full=False),
    "4_7": lambda inputs: _manipulation(inputs, full=True),
    "4_8": _shapes,
    "4_9": _loss,
}
OWN: dict[str, Callable[[Inputs], str]] = {
    "factors": lambda inputs: factors.shows(factors.read(inputs.files)),
    "swaps": lambda inputs: swaps.shows([*inputs.arrays(swaps.NEEDED).values()]),
    "frozen_grid": lambda inputs: frozen_grid.shows(frozen_grid.read(inputs.files)),
    "neighbours": lambda inputs: neighbours.shows([*inputs.arrays(neighbours.NEEDED).values()]),
    "embedding": lambda inputs: embedding.shows([*inputs.arrays(embedding.NEEDED).values()]),
    "segments_attributes": lambda inputs: segments_attributes.shows(segments_attributes.read(inputs.files)),
    "confusion": lambda inputs: confusion.shows(confusion.read(inputs.files)),
    "accuracy_hours": lambda inputs: accuracy_hours.shows(accuracy_hours.read(inputs.files, inputs.dataset)),
}
