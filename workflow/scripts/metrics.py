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

Means = dict[tuple[Any, ...], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--linear", type=Path, nargs="+", required=True, help="JSON results of the linear probe")
    parser.add_argument("--fewshot", type=Path, nargs="+", required=True, help="JSON results of the few-shot episodes")
    parser.add_argument("--history", type=Path, nargs="+", required=True, help="history.csv of every encoder")
    parser.add_argument("--metrics", type=Path, required=True, help="accuracies, JSON")
    parser.add_argument("--accuracy", type=Path, required=True, help="accuracies of the linear probe, a row each, CSV")
    parser.add_argument("--loss", type=Path, required=True, help="step and loss, a column per method, CSV")
    parser.add_argument("--validation", type=Path, required=True, help="penalty and accuracy, a column per method, CSV")
    args = parser.parse_args()
    linear = [json.loads(path.read_text()) for path in args.linear]
    fewshot = [json.loads(path.read_text()) for path in args.fewshot]

    tables = {
        # Of the images that choose the penalty: what parameters may be chosen by.
        "validation": means(((r["dataset"], r["method"]), max(v["accuracy"] for v in r["validation"])) for r in linear),
        "linear": means(((r["dataset"], r["method"]), r["accuracy"]) for r in linear),
        "fewshot": means(
            ((shots, r["dataset"], r["method"]), s["accuracy"]) for r in fewshot for shots, s in r["shots"].items()
        ),
    }
    args.metrics.write_text(json.dumps({k: nested(with_average(v)) for k, v in tables.items()}, indent=1) + "\n")
    rows = [[f"{dataset} {method}", value] for (dataset, method), value in tables["linear"].items()]
    write_csv(args.accuracy, ["encoder", "accuracy"], rows)
    rows = ((path.parts[-3], r) for path in args.history for r in read_csv(path))
    losses = means(((int(r["step"]), method), float(r["loss"])) for method, r in rows)
    validation = means(((math.log10(v["l2"]), r["method"]), v["accuracy"]) for r in linear for v in r["validation"])
    methods = list(dict.fromkeys(r["method"] for r in linear))
    write_wide(args.loss, "step", losses, methods)
    write_wide(args.validation, "log10_l2", validation, methods)


def means(values: Iterable[tuple[tuple[Any, ...], float]]) -> Means:
    """Mean value of each key, in the order of first appearance: seeds, and data sets where the key leaves them out."""
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for key, value in values:
        groups[key].append(value)
    return {key: fmean(group) for key, group in groups.items()}


def with_average(values: Means) -> Means:
    """The values, preceded by their means over data sets, the last key but one."""
    return means(((*key[:-2], "average", key[-1]), value) for key, value in values.items()) | values


def nested(values: Means) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for (*heads, last), value in values.items():
        node = out
        for head in heads:
            node = node.setdefault(head, {})
        node[last] = round(value, 4)
    return out


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as f:
        yield from csv.DictReader(f)


def write_wide(path: Path, index: str, values: Means, methods: list[str]) -> None:
    rows = [[x, *(values.get((x, m), "") for m in methods)] for x in sorted({x for x, _ in values})]
    write_csv(path, [index, *methods], rows)


def write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([head, *rows])


if __name__ == "__main__":
    try:
        main()
    except OSError as e:  # Snakemake removes what is half written
        print(
            f"metrics: {e}. Make room, or let this user write there, and run the same command again.", file=sys.stderr
        )
        sys.exit(2)
