"""Features on disk: one uncompressed .npz per encoder and data set, read and checked in one place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsiam import runtime

_LARGEST = 1e16
METRICS = ("accuracy", "mean_per_class")
KEYS = ("train", "train_labels", "test", "test_labels")
MIRRORED = "train_mirrored"  # is there only where it was asked for
EDGES = "edges"  # is there only where z has segments


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Frozen features of one data set.

    Attributes:
        train, test: (N, d) float32.
        train_labels, test_labels: (N,) int64, indices into ``meta["classes"]``.
        meta: the data set's meta.json: dataset, classes, metric, counts, splits.
        train_mirrored: (N, d) float32, of the train images' mirror images; None where they were not extracted.
        edges: (n + 1,) int64, from 0 to d, of the n segments of z; None where it has none.
    """

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    meta: dict[str, Any]
    train_mirrored: NDArray[np.float32] | None = None
    edges: NDArray[np.int64] | None = None

    @property
    def dataset(self) -> str:
        return self.meta["dataset"]

    @property
    def classes(self) -> list[str]:
        return self.meta["classes"]

    @property
    def validation(self) -> NDArray[np.int64]:
        """Rows of ``train`` that choose the penalty."""
        return np.asarray(self.meta["splits"]["val"], np.int64)


def write(
    path: Path | str,
    train: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test: NDArray[np.floating],
    test_labels: NDArray[np.integer],
    *,
    mirrored: NDArray[np.floating] | None = None,
    edges: NDArray[np.integer] | None = None,
) -> None:
    """Write features (N, d) and labels (N,) atomically, as float32 and int64; ``mirrored``: of the train images' mirror
    images; ``edges``: of the segments of z, where it has some."""
    arrays = {
        "train": np.asarray(train, np.float32),
        "train_labels": np.asarray(train_labels, np.int64),
        "test": np.asarray(test, np.float32),
        "test_labels": np.asarray(test_labels, np.int64),
    }
    if mirrored is not None:
        arrays[MIRRORED] = np.asarray(mirrored, np.float32)
    if edges is not None:
        arrays[EDGES] = np.asarray(edges, np.int64)
    with runtime.atomic(path) as temporary, open(temporary, "wb") as f:
        np.savez(f, **arrays)  # type: ignore[arg-type]


def read(features: Path | str, meta: Path | str) -> FeatureSet:
    """Read what `write` wrote, with the data set's meta.json, and check that both fit together.

    Raises:
        UserError: a file is missing, damaged or no feature file; NaN or infinity; a shape, a label or a count
            that does not agree with meta.json. The message names the file and the value met.
    """
    facts = _read_meta(meta)
    found = FeatureSet(**_read_arrays(features), meta=facts)
    if problem := problems(found):
        raise runtime.damaged(meta if problem[0] == "meta" else features, problem[1])
    return found


def write_result(path: Path | str, result: dict[str, Any]) -> None:
    """Write a result as JSON, atomically, one line per key: lists of thousands of counts stay readable."""
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items())
    runtime.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _read_meta(path: Path | str) -> dict[str, Any]:
    facts = runtime.read_json(path)
    needed = {"dataset": str, "classes": list, "metric": str, "counts": dict, "splits": dict}
    missing = [key for key, kind in needed.items() if not isinstance(facts.get(key), kind)]
    missing += [f"counts.{key}" for key in ("train", "test") if not missing and key not in facts["counts"]]
    missing += ["splits.val"] if not missing and "val" not in facts["splits"] else []
    if missing or facts["metric"] not in METRICS:
        problem = f"no {', '.join(missing)}" if missing else f"metric {facts['metric']!r}"
        raise runtime.damaged(path, f"{problem}; needed are {', '.join(needed)}, metric one of {', '.join(METRICS)}")
    return facts


def _read_arrays(path: Path | str) -> dict[str, Any]:
    arrays = runtime.read_arrays(path)
    if absent := [key for key in KEYS if key not in arrays]:
        raise runtime.damaged(path, f"{', '.join(absent)} is not in it; needed are {', '.join(KEYS)}")
    return {key: arrays[key] for key in (*KEYS, MIRRORED, EDGES) if key in arrays}


def problems(data: FeatureSet) -> tuple[str, str] | None:
    """Where, in the features or in meta, something is wrong, and what; None where nothing is."""
    parts = {"train": (data.train, data.train_labels), "test": (data.test, data.test_labels)}
    for split, (x, y) in parts.items():
        if problem := _problem(split, x, y, len(data.classes), data.meta["counts"][split]):
            return "features", problem
    if data.train.shape[1] != data.test.shape[1]:
        widths = f"{data.train.shape[1]} dimensions in train, {data.test.shape[1]} in test"
        return "features", f"{widths}; they must be equal"
    mirrored = data.train_mirrored
    if mirrored is not None and (mirrored.shape, mirrored.dtype) != (data.train.shape, np.float32):
        return "features", f"{MIRRORED} has shape {mirrored.shape}, train {data.train.shape}"
    edges, dim = data.edges, data.train.shape[1]
    if edges is not None and (edges[[0, -1]].tolist() != [0, dim] or (np.diff(edges) < 0).any()):
        return "features", f"{EDGES} {edges.tolist()} do not rise from 0 to {dim}"
    validation, images = data.meta["splits"]["val"], len(data.train)
    if 0 < len(set(validation)) < images and min(validation) >= 0 and max(validation) < images:
        return None
    met = f" from {min(validation)} to {max(validation)}, allowed are 0 to {images - 1}" if validation else ""
    return "meta", (f"splits.val holds {len(validation)} indices{met}; neither it nor the rest of train may be empty")


def _problem(split: str, x: NDArray[Any], y: NDArray[Any], classes: int, count: int) -> str | None:
    """What is wrong with the features ``x`` and labels ``y`` of one split, or None."""
    if x.ndim != 2 or x.dtype != np.float32 or not x.size:
        return f"{split} has shape {x.shape}, type {x.dtype}; needed is (images, dimensions) float32, not empty"
    if y.shape != (len(x),) or y.dtype != np.int64:
        return f"{split}_labels has shape {y.shape} and type {y.dtype}; needed is ({len(x)},) int64"
    if len(x) != count:
        return f"{split} has {len(x)} images, meta.json says {count}"
    if not 0 <= y.min() <= y.max() < classes:
        return f"{split}_labels holds labels from {y.min()} to {y.max()}; allowed are 0 to {classes - 1}"
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        value = x[row][~np.isfinite(x[row])][0]
        return f"{split} holds {value} in image {row}, and {bad.sum()} of {len(x)} images are not finite"
    if (largest := float(max(x.max(), -x.min()))) > _LARGEST:
        return (
            f"{split} holds numbers up to {largest:.0e}; above {_LARGEST:.0e} their products leave the range of float32"
        )
    return None
