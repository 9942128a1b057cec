"""Accuracies in percent with their 95 % confidence half-widths."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Z95 = 1.96  # normal quantile of the thesis's intervals


class Score(NamedTuple):
    """Percent correct and the half-width of its 95 % confidence interval, also in percent."""

    accuracy: float
    ci95: float


def confusion(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): row = true class, column = predicted class."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def per_class(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Percent correct of each class of a confusion matrix; NaN for a class without images."""
    images = counts.sum(axis=1)
    return 100 * np.divide(counts.diagonal(), images, out=np.full(len(counts), np.nan), where=images > 0)


def score(counts: NDArray[np.int64], metric: str) -> Score:
    """Score of a confusion matrix by ``metric``: "accuracy" over all images or "mean_per_class".

    The interval is the normal approximation: over the images, or, for the mean over classes, from the
    classes' own variances ``p (1 - p) / n``. Classes without test images do not count.
    """
    images = counts.sum(axis=1)
    correct, images = counts.diagonal()[images > 0], images[images > 0]
    if metric == "accuracy":
        correct, images = correct.sum(keepdims=True), images.sum(keepdims=True)
    p = correct / images
    half = Z95 * np.sqrt((p * (1 - p) / images).sum()) / len(p)
    return Score(float(100 * p.mean()), float(100 * half))


def pack(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> str:
    """Which images are classified rightly, as hexadecimal digits, four images each: in the order of their classes,
    and within a class in their own."""
    return np.packbits(correct[np.argsort(labels, kind="stable")]).tobytes().hex()


def unpack(packed: str, images: int) -> NDArray[np.bool_]:
    """What `pack` packed, class by class."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8), count=images).astype(bool)


def strata(counts: NDArray[np.int64], metric: str) -> NDArray[np.int64]:
    """Sizes of the groups of images, in the order of `pack`, whose means have equal weight in `score`."""
    images = counts.sum(axis=1)
    return images.sum(keepdims=True) if metric == "accuracy" else images[images > 0]


def episode_summary(correct: NDArray[np.int64], queries: int) -> dict[str, Any]:
    """Mean, standard deviation and 95 % half-width over episodes, in percent, with the counts they come from.

    Args:
        correct: (episodes,) queries answered rightly, out of ``queries``.
    """
    accuracies = 100 * correct / queries
    std = float(accuracies.std())
    return {
        "accuracy": float(accuracies.mean()),
        "std": std,
        "ci95": Z95 * std / len(correct) ** 0.5,
        "correct": correct.tolist(),
    }
