"""Hand-made results of the protocols, with no more in them than the reports read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsiam.evaluation import metrics

IMAGES = 200
WAYS, QUERIES = 5, 4  # 20 queries per episode: each is 5 %


def linear(
    method: str, dataset: str, seed: int, accuracy: float, ci95: float = 0.5, knn: float = 30.0
) -> dict[str, Any]:
    """One linear result on 200 images of one class, of which the first ones are right."""
    right = round(2 * accuracy)
    return {
        "method": method,
        "dataset": dataset,
        "seed": seed,
        "metric": "accuracy",
        "accuracy": accuracy,
        "ci95": ci95,
        "l2": 0.01,
        "n_train": 100,
        "n_test": IMAGES,
        "confusion": [[right, IMAGES - right], [0, 0]],
        "correct": metrics.pack(np.arange(IMAGES) < right, np.zeros(IMAGES, np.int64)),
        "knn": {"k": 20, "accuracy": knn},
    }


def fewshot(method: str, dataset: str, seed: int, correct: dict[str, Sequence[int]], ci95: float = 0.5) -> dict:
    """One few-shot result with ``correct[shots]`` per episode."""
    shots = {}
    for n, counts in correct.items():
        mean = 100 * sum(counts) / len(counts) / (WAYS * QUERIES)
        shots[n] = {"accuracy": mean, "std": 1.0, "ci95": ci95, "correct": list(counts)}
    episodes = len(next(iter(correct.values())))
    facts = {"method": method, "dataset": dataset, "seed": seed, "ways": WAYS, "queries": QUERIES}
    return facts | {"episodes": episodes, "shots": shots}


def write(folder: Path, results: Sequence[dict[str, Any]]) -> list[Path]:
    """A JSON file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{r['method']}-{r['dataset']}-{r['seed']}.json" for r in results]
    for path, result in zip(paths, results, strict=True):
        path.write_text(json.dumps(result))
    return paths


def rows(markdown: str) -> dict[tuple[str, ...], list[str]]:
    """Cells of every table row, by title; a row of the differences also by its protocol."""
    found: dict[tuple[str, ...], list[str]] = {}
    for line in markdown.splitlines():
        if line.startswith("|"):
            title, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            key = (title, cells.pop(0)) if cells and (title,) in found else (title,)
            found[key] = cells
    return found
