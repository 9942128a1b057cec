"""results/provenance.md: what trained the networks behind the tables, on which machine, with what, in what time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diffsiam import runtime
from diffsiam.report.summary import aligned
from diffsiam.training import methods


def run(trainings: Sequence[Path], out: Path) -> None:
    """Write the page.

    Args:
        trainings: config.json of an encoder or training.json of a diffusion model, each with history.csv beside it.
        out: the .md to write.
    """
    runtime.write_text(out, text([(runtime.read_json(p), pd.read_csv(p.with_name("history.csv"))) for p in trainings]))


def text(trainings: Iterable[tuple[dict[str, Any], pd.DataFrame]]) -> str:
    """The page, from records and histories. Networks that were fetched or left untrained have no row."""
    rows = [["Training", "Seed", "Steps", "Batch", "Hours", "Last loss", "Spread", "Ended (UTC)"]]
    total = 0.0
    made: dict[str, None] = {}  # a set that keeps the order
    for record, history in trainings:
        collected = record["collected"]
        versions = ", ".join(f"{name} {version}" for name, version in collected["versions"].items())
        where = ", ".join([collected["machine"], *collected["gpus"]])
        how = f"; computed on {record['device']} in {record['precision']}" if "device" in record else ""
        line = f"- {where}{how}; commit {collected['commit']}; Python {collected['python']}, {versions}"
        made[line] = None
        if history.empty:
            continue
        params = record["params"]
        batch = (params.get("representation") or params["diffusion"])["batch_size"]
        spent, last = hours(history, batch), history.iloc[-1]
        total += spent
        title = methods.lookup(record["method"]).title if "method" in record else "Diffusion model"
        seed = record["seed"] if "method" in record else params["diffusion"]["seed"]
        spread = f"{last['spread']:.2f}" if "spread" in last else ""
        ended = collected["date"][:16].replace("T", " ")
        rows.append(
            [title, str(seed), f"{last['step']:.0f}", str(batch), f"{spent:.2f}", f"{last['loss']:.4f}", spread, ended]
        )
    lines = [
        f"**What made these numbers.** {total:.1f} hours of training, evaluation aside; of interrupted trainings the",
        "steps that were kept. Spread: 1 is a spread representation, 0 a collapsed one.",
        "",
        *aligned(rows),
        "",
        *made,
    ]
    return "\n".join([*lines, ""])


def hours(history: pd.DataFrame, batch_size: int) -> float:
    """Time of a training over all its sittings, from the rate of every record.

    Args:
        history: ``step`` at the end of each record, ``images_per_second`` on the way there.
    """
    images = history["step"].diff().fillna(history["step"]) * batch_size
    return float((images / history["images_per_second"]).sum()) / 3600
