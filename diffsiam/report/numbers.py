"""The numbers beside the figures: every method's in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from diffsiam import runtime
from diffsiam.training import methods

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
    """One row per measure, one column per method, "" where a method lacks it; below, what the segments claim.

    A number of one seed has its interval beside it, where it has one; files of a version before have none.
    """
    keys = [key for key in _KEYS if frame[key].notna().any()]
    filled = frame.assign(**{key: frame[key].fillna("") for key in keys})
    if "ci95" not in filled:
        filled["ci95"] = float("nan")
    names = list(dict.fromkeys(filled["method"]))
    lines = ["| " + " | ".join([*keys, *names]) + " |", "|---" * len(keys) + "|---:" * len(names) + "|"]
    for index, group in filled.groupby(keys, sort=False):
        cells = [_cell(group[group["method"] == name]) for name in names]
        lines.append("| " + " | ".join([*map(str, index), *cells]) + " |")
    return "\n".join([*lines, *_claim(filled), ""])


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    half = float(rows["ci95"].iloc[0]) if len(rows) == 1 else math.nan
    return f"{rows['value'].mean():.4g}" + ("" if math.isnan(half) else f" ± {half:.2g}")


def _claim(frame: pd.DataFrame) -> list[str]:
    """Whether early segments are fine and late ones coarse, by each ``coarseness_trend``."""
    lines = []
    for row in frame[frame["metric"] == "coarseness_trend"].to_dict("records"):
        value, half = row["value"], row["ci95"]
        verdict = "undecided" if not abs(value) > half else "holds" if value > 0 else "the opposite"
        whose = f"{methods.lookup(row['method']).title}, seed {row['seed']}, {row['dataset']}, {row['measure']}"
        lines.append(f"- {whose}: {value:+.2f} ± {half:.2f}, {verdict}")
    head = 'The claim "early segments fine, late ones coarse", by the trend of coarseness from early to late ranges:'
    return ["", head, "", *lines] if lines else []
