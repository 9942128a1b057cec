"""Features on disk: one uncompressed .npz per encoder and data set, read and checked in one place."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsiam import runtime
from diffsiam.errors import UserError

METRICS = ("accuracy", "mean_per_class")
KEYS = ("train", "train_labels", "test", "test_labels")


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Frozen features of one data set.

    Attributes:
        train, test: (N, d) float32.
        train_labels, test_labels: (N,) int64, indices into ``meta["classes"]``.
        meta: the data set's meta.json: dataset, classes, metric, counts, splits.
    """

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    meta: dict[str, Any]

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
) -> None:
    """Write features (N, d) and labels (N,) atomically, as float32 and int64."""
    arrays = {
        "train": np.asarray(train, np.float32),
        "train_labels": np.asarray(train_labels, np.int64),
        "test": np.asarray(test, np.float32),
        "test_labels": np.asarray(test_labels, np.int64),
    }
    with runtime.atomic(path) as temporary, open(temporary, "wb") as f:
        np.savez(f, **arrays)  # type: ignore[arg-type]


def read(features: Path | str, meta: Path | str) -> FeatureSet:
    """Read what `write` wrote, with the data set's meta.json, and check that both fit together.

    Raises:
        UserError: a file is missing, damaged or no feature file; NaN or infinity; a shape, a label or a count
            that does not agree with meta.json. The message names the file and the value met.
    """
    facts = _read_meta(meta)
    arrays = _read_arrays(features)
    remedy = f"Delete {features} and run Snakemake again: it extracts the features anew."
    for split in ("train", "test"):
        x, y = arrays[split], arrays[f"{split}_labels"]
        problem = _problem(split, x, y, len(facts["classes"]), facts["counts"][split])
        if problem:
            raise UserError(f"{features}: {problem}. {remedy}")
    if arrays["train"].shape[1] != arrays["test"].shape[1]:
        widths = f"{arrays['train'].shape[1]} dimensions in train, {arrays['test'].shape[1]} in test"
        raise UserError(f"{features}: {widths}; they must be equal. {remedy}")
    validation = facts["splits"]["val"]
    images = len(arrays["train"])
    if not 0 < len(set(validation)) < images or min(validation) < 0 or max(validation) >= images:
        raise UserError(
            f"{meta}: splits.val holds {len(validation)} indices"
            + (f" from {min(validation)} to {max(validation)}, allowed are 0 to {images - 1}" if validation else "")
            + "; neither it nor the rest of train may be empty. Delete it and run Snakemake again: it prepares "
            "the data anew."
        )
    return FeatureSet(**arrays, meta=facts)


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
        raise UserError(
            f"{path}: {problem}; needed are {', '.join(needed)}, metric one of {', '.join(METRICS)}. Delete "
            "the file and run Snakemake again: it prepares the data anew."
        )
    return facts


def _read_arrays(path: Path | str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in KEYS}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Ask Snakemake for it: `snakemake --cores all {path}`.") from None
    except KeyError as e:
        problem = f"{e.args[0]}; needed are {', '.join(KEYS)}"
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, TypeError, AttributeError) as e:
        problem = f"not a complete .npz file of plain arrays ({e})"
    raise UserError(f"{path}: {problem}. Delete it and run Snakemake again: it extracts the features anew.")


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
    return None
