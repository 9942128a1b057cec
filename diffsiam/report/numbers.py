"""The numbers beside the figures: every method's in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from diffsiam import runtime

_KEYS = ["dataset", "measure", "subject", "attribute", "metric"]


def run(results: Sequence[Path], out: Path) -> None:
    """Write ``out`` (.csv), the rows of ``results`` one below the other, and .md with the methods side by side.

    Args:
        results: numbers_<method>.csv files, as `diffsiam.generation.figures` describes them.
    """
    frame = pd.concat([runtime.read_csv(path) for path in results], ignore_index=True)
    with runtime.atomic(out) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    runtime.write_text(out.with_suffix(".md"), markdown(frame))


def markdown(frame: pd.DataFrame) -> str:
    """One row per measure, one column per method, "" where a method lacks it."""
    keys = [key for key in _KEYS if frame[key].notna().any()]
    filled = frame.assign(**{key: frame[key].fillna("") for key in keys})
    methods = list(dict.fromkeys(filled["method"]))
    table = filled.pivot_table(index=keys, columns="method", values="value", aggfunc="mean", sort=False)[methods]
    lines = ["| " + " | ".join([*keys, *methods]) + " |", "|---" * len(keys) + "|---:" * len(methods) + "|"]
    for index, row in table.iterrows():
        names = index if isinstance(index, tuple) else (index,)
        cells = ["" if pd.isna(value) else f"{value:.4g}" for value in row]
        lines.append("| " + " | ".join([*map(str, names), *cells]) + " |")
    return "\n".join([*lines, ""])
