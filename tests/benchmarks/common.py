"""What the evaluation benchmarks share: timing, and features of realistic shape."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

THREADS = 2  # of both sides


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def features(
    images: int, dim: int, classes: int, noise: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Averages over positions of rectified units of a random map: non-negative, correlated, with a spectrum that
    decays over three orders of magnitude and a mean of 0.4, like pooled features of a ResNet.

    Args:
        noise: spread of a class relative to the distances of the classes' centres.
    Returns:
        (images, dim) features and (images,) labels.
    """
    rng = np.random.default_rng(seed)
    scale = (1 + np.arange(64)) ** -0.5
    labels = rng.integers(0, classes, images)
    image = (rng.normal(size=(classes, 64))[labels] + noise * rng.normal(size=(images, 64))) * scale
    mixing, shift = rng.normal(size=(64, dim)), rng.normal(size=dim) / 2
    pooled = np.zeros((images, dim))
    for _ in range(4):
        position = image + 0.7 * noise * scale * rng.normal(size=image.shape)
        pooled += np.maximum(position @ mixing + shift, 0)
    return (0.4 * pooled / pooled.mean()).astype(np.float32), labels
