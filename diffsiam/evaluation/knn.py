"""k-nearest-neighbour accuracy of frozen features: no training, no parameter to choose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

K = 20
BLOCK = 512  # test images at a time: bounds the memory for similarities


def predict(
    train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], k: int = K
) -> NDArray[np.int64]:
    """Majority vote of the ``k`` training images of largest cosine similarity; of classes with equal votes, the
    one with the nearest image.

    Args:
        train: features (N, d).
        labels: theirs, (N,).
        test: features (M, d).
        k: how many vote; all where there are fewer.
    Returns:
        (M,) labels.
    """
    k = min(k, len(train))
    train, test = _unit(train), _unit(test)
    out = np.empty(len(test), np.int64)
    for start in range(0, len(test), BLOCK):
        similarity = test[start : start + BLOCK] @ train.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        by_rank = np.argsort(-np.take_along_axis(similarity, nearest, axis=1), axis=1, kind="stable")
        votes = labels[np.take_along_axis(nearest, by_rank, axis=1)]  # nearest first
        agreeing = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
        out[start : start + BLOCK] = votes[np.arange(len(votes)), agreeing.argmax(axis=1)]
    return out


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
