"""Collect what `dvc metrics`, `dvc plots` and `dvc exp show` show: accuracies, loss curves, validation curves.

Standard library only: the job is over before an import of the package would be.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--linear", type=Path, nargs="+", required=True, help="JSON results of the linear probe")
    parser.add_argument("--fewshot", type=Path, nargs="+", required=True, help="JSON results of the few-shot episodes")
    parser.add_argument("--history", type=Path, nargs="+", required=True, help="history.csv of every encoder")
    parser.add_argument("--metrics", type=Path, required=True, help="mean accuracies by protocol and method, JSON")
    parser.add_argument("--accuracy", type=Path, required=True, help="accuracies of the linear probe, CSV")
    parser.add_argument("--loss", type=Path, required=True, help="loss by method and step, CSV")
    parser.add_argument("--validation", type=Path, required=True, help="accuracy by method and penalty, CSV")
    args = parser.parse_args()
    linear = [json.loads(path.read_text()) for path in args.linear]
    fewshot = [json.loads(path.read_text()) for path in args.fewshot]

    tables = {
        # Of the images that choose the penalty: what parameters may be chosen by.
        "validation": means((r["method"], max(v["accuracy"] for v in r["validation"])) for r in linear),
        "linear": means((r["method"], r["accuracy"]) for r in linear),
    }
    for shots in dict.fromkeys(shots for r in fewshot for shots in r["shots"]):
        tables[f"{shots}-shot"] = means((r["method"], r["shots"][shots]["accuracy"]) for r in fewshot)
    rounded = {name: {method: round(x, 4) for method, x in values.items()} for name, values in tables.items()}
    args.metrics.write_text(json.dumps(rounded, indent=1) + "\n")

    accuracy = means(((r["dataset"], r["method"]), r["accuracy"]) for r in linear)
    write_csv(args.accuracy, ["dataset", "method", "accuracy"], accuracy)
    rows = [(path.parts[-3], r) for path in args.history for r in read_csv(path)]  # an untrained encoder's has none
    loss = means(((method, int(r["step"])), float(r["loss"])) for method, r in rows)
    write_csv(args.loss, ["method", "step", "loss"], loss)
    tried = ((r["method"], v) for r in linear for v in sorted(r["validation"], key=lambda v: v["l2"]))
    validation = means(((method, math.log10(v["l2"])), v["accuracy"]) for method, v in tried)
    write_csv(args.validation, ["method", "log10_l2", "accuracy"], validation)


def means(values: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """Mean value of each key, in the order of first appearance: over seeds, and data sets where the key has none."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for key, value in values:
        groups[key].append(value)
    return {key: fmean(group) for key, group in groups.items()}


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as f:
        yield from csv.DictReader(f)


def write_csv(path: Path, head: list[str], values: dict[tuple[Any, Any], float]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([head, *([*key, value] for key, value in values.items())])


if __name__ == "__main__":
    try:
        main()
    except OSError as e:  # Snakemake removes what is half written
        print(
            f"metrics: {e}. Make room, or let this user write there, and run the same command again.", file=sys.stderr
        )
        sys.exit(2)
