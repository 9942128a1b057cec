"""results/provenance.md: the data behind the tables, and what trained the networks, on which machine, in what time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diffsiam import runtime
from diffsiam.report.summary import aligned
from diffsiam.training import methods


def run(metas: Sequence[Path], trainings: Sequence[Path], out: Path) -> None:
    """Write the page.

    Args:
        metas: meta.json of the data sets.
        trainings: config.json of an encoder or training.json of a diffusion model, each with history.csv beside it.
        out: the .md to write.
    """
    records = [(runtime.read_json(p), runtime.read_csv(p.with_name("history.csv"))) for p in trainings]
    runtime.write_text(out, "\n".join([*_data(map(runtime.read_json, metas)), "", *_trainings(records), ""]))


def _data(metas: Iterable[dict[str, Any]]) -> list[str]:
    """A row per data set, with the checksums of its images as they were used."""
    rows = [["Data set", "Classes", "Train", "Test", "Size", "From", "SHA-256 of train, test images"]]
    for meta in metas:
        counts = [len(meta["classes"]), meta["counts"]["train"], meta["counts"]["test"], meta["image_size"]]
        source = " ".join(", ".join(v) if isinstance(v, list) else str(v) for v in meta["source"].values())
        sums = ", ".join(meta["sha256"][f"images_{part}.npy"][:12] for part in ("train", "test"))
        rows.append([meta["dataset"], *map(str, counts), source, sums])
    return ["**Data.**", "", *aligned(rows)]


def _trainings(trainings: Iterable[tuple[dict[str, Any], pd.DataFrame]]) -> list[str]:
    """From records and histories. Networks that were fetched or left untrained have no row."""
    rows = [["Training", "Seed", "Steps", "Batch", "Hours", "Last loss", "Spread", "Participation", "Ended (UTC)"]]
    total = 0.0
    made: dict[str, None] = {}  # a set that keeps the order
    for record, history in trainings:
        collected = record["collected"]
        versions = ", ".join(f"{name} {version}" for name, version in collected["versions"].items() if version)
        where = ", ".join([collected["machine"], *collected["gpus"]])
        how = f"; computed on {record['device']} in {record['precision']}" if "device" in record else ""
        line = f"- {where}{how}; commit {collected['commit'] or 'unknown'}; Python {collected['python']}, {versions}"
        made[line] = None
        if history.empty:
            continue
        params = record["params"]
        batch = (params.get("representation") or params["diffusion"])["batch_size"]
        spent, last = hours(history, batch), history.iloc[-1]
        total += spent
        title = methods.lookup(record["method"]).title if "method" in record else "Diffusion model"
        seed = record["seed"] if "method" in record else params["diffusion"]["seed"]
        uses = [f"{last[name]:.2f}" if name in last else "" for name in ("spread", "participation")]
        ended = collected["date"][:16].replace("T", " ")
        facts = [str(seed), f"{last['step']:.0f}", str(batch), f"{spent:.3f}", f"{last['loss']:.4f}"]
        rows.append([title, *facts, *uses, ended])
    return [
        f"**What made these numbers.** {total:.2f} hours of training, added up, evaluation aside; of interrupted",
        "trainings the steps that were kept. Spread: 0 where all representations point the same way, 1 evenly over",
        "the sphere. Participation: in how many directions they vary, of a batch, (sum l)^2 / sum l^2 of the",
        "eigenvalues l of their covariance; empty where it was not recorded.",
        "",
        *aligned(rows),
        "",
        *made,
    ]


def hours(history: pd.DataFrame, batch_size: int) -> float:
    """Time of a training over all its sittings, from the rate of every record.

    Args:
        history: ``step`` at the end of each record, ``images_per_second`` on the way there.
    """
    images = history["step"].diff().fillna(history["step"]) * batch_size
    return float((images / history["images_per_second"]).sum()) / 3600
