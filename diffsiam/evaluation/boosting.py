"""Gradient-boosted trees as scikit-learn's `GradientBoostingClassifier` grows them by default, compiled.

100 trees of depth 3 per class at rate .1 on the log-loss, leaves by one Newton step (Friedman 2001). Images are sorted
by each feature once for all trees, not once in every node. Trees differ from scikit-learn's only where features are of
equal merit: which of them is taken is drawn here in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsiam.evaluation.compiled import jit

TREES, DEPTH, RATE = 100, 3, 0.1
_NODES = 2**DEPTH
_APART = np.float32(1e-7)  # values that are nearer to each other are not told apart


def classify(
    x: NDArray[np.floating], y: NDArray[np.integer], test: NDArray[np.floating], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Fit features ``x`` (n, d) to classes ``y`` (n,), each of 0 .. K - 1 at least once, and predict those of ``test``.

    Returns:
        The features' importances (d,), which sum to 1, or to 0 where no tree splits; the classes predicted.
    """
    columns = np.ascontiguousarray(x.T, np.float32)
    order = np.argsort(columns, axis=1, kind="stable")
    sorted_ = np.take_along_axis(columns, order, axis=1)
    classes = int(y.max()) + 1
    share = np.bincount(y, minlength=classes) / len(y)
    start = np.log(share[1:] / share[0]) if classes == 2 else np.log(share)
    tried = np.tile(np.arange(x.shape[1]), (TREES * len(start), 1))
    tried = np.random.default_rng(seed).permuted(tried, axis=1)
    unseen = np.ascontiguousarray(test.T, np.float32)
    total, scores = _boost(columns, order.astype(np.int32), sorted_, y.astype(np.int64), unseen, start, tried)
    predicted = (scores[0] > 0).astype(np.int64) if classes == 2 else scores.argmax(axis=0)
    return (total / total.sum() if total.sum() > 0 else total), predicted


@jit
def _boost(x: Any, order: Any, sorted_: Any, y: Any, test: Any, start: Any, tried: Any) -> Any:
    """Importances (d,), not normalised, and the scores (columns, m) of ``test``.

    Args:
        x, test: (d, n) and (d, m) float32; ``order`` sorts the rows of the former, into ``sorted_``.
        start: the log-odds of class 1 where there are two classes, else one log-probability per class.
        tried: (trees, d), in which order each tree tries the features: of equals the first is taken.
    """
    n, columns = y.size, start.size
    scores, unseen = np.empty((columns, n)), np.empty((columns, test.shape[1]))
    for c in range(columns):
        scores[c], unseen[c] = start[c], start[c]
    p, residual, importances = np.empty((columns, n)), np.empty(n), np.zeros(x.shape[0])
    leaf, features, cuts = np.empty(n, np.uint8), np.empty(_NODES, np.int64), np.empty(_NODES)
    for stage in range(TREES):
        _probabilities(scores, p)
        for c in range(columns):
            own = c if columns > 1 else 1
            for i in range(n):
                residual[i] = (y[i] == own) - p[c, i]
            _grow(x, order, sorted_, residual, tried[stage * columns + c], leaf, features, cuts, importances)
            values = _leaves(residual, leaf, columns)
            for i in range(n):
                scores[c, i] += RATE * values[leaf[i] - _NODES]
            for i in range(test.shape[1]):
                node = 1
                while node < _NODES:
                    node = 2 * node + (test[features[node], i] > cuts[node])
                unseen[c, i] += RATE * values[node - _NODES]
    return importances, unseen


@jit
def _probabilities(scores: Any, p: Any) -> None:
    """Softmax over the columns of ``scores``, or the logistic function of a single one."""
    columns, n = scores.shape
    for i in range(n):
        if columns == 1:
            p[0, i] = 1 / (1 + np.exp(-scores[0, i]))
            continue
        top, total = scores[0, i], 0.0
        for c in range(1, columns):
            top = max(top, scores[c, i])
        for c in range(columns):
            p[c, i] = np.exp(scores[c, i] - top)
            total += p[c, i]
        for c in range(columns):
            p[c, i] /= total


@jit
def _grow(
    x: Any, order: Any, sorted_: Any, residual: Any, tried: Any, leaf: Any, features: Any, cuts: Any, importances: Any
) -> None:
    """One tree on ``residual``: each image's leaf, and the inner nodes' features and thresholds.

    Nodes are numbered from 1, the children of i are 2 i and 2 i + 1; one that cannot be split sends all to the left.
    """
    n = residual.size
    leaf[:] = 1
    total, number, best = np.empty(_NODES), np.empty(_NODES), np.empty(_NODES)
    left, below, last = np.empty(_NODES), np.empty(_NODES), np.empty(_NODES, np.float32)
    for level in range(DEPTH):
        total[:], number[:], best[:] = 0.0, 0.0, -1.0
        features[2**level : 2 ** (level + 1)], cuts[2**level : 2 ** (level + 1)] = 0, np.inf
        for i in range(n):
            total[leaf[i]] += residual[i]
            number[leaf[i]] += 1
        for f in tried:
            left[:], below[:], last[:] = 0.0, 0.0, np.inf
            for rank in range(n):
                i, value = order[f, rank], sorted_[f, rank]
                node = leaf[i]
                if value > last[node] + _APART:  # never of a node's first
                    right, above = total[node] - left[node], number[node] - below[node]
                    merit = (left[node] ** 2 * above + right**2 * below[node]) / (below[node] * above)
                    if merit > best[node]:
                        best[node], features[node] = merit, f
                        cuts[node] = (np.float64(value) + np.float64(last[node])) / 2
                left[node] += residual[i]
                below[node] += 1
                last[node] = value
        for node in range(2**level, 2 ** (level + 1)):
            if cuts[node] < np.inf:
                importances[features[node]] += max(best[node] - total[node] ** 2 / number[node], 0.0)
        for i in range(n):
            leaf[i] = 2 * leaf[i] + (x[features[leaf[i]], i] > cuts[leaf[i]])


@jit
def _leaves(residual: Any, leaf: Any, columns: int) -> Any:
    """The Newton step of each leaf; scikit-learn's carries Friedman's factor (K - 1) / K where there are K > 2."""
    gradient, curvature = np.zeros(_NODES), np.zeros(_NODES)
    for i in range(residual.size):
        gradient[leaf[i] - _NODES] += residual[i]
        curvature[leaf[i] - _NODES] += abs(residual[i]) * (1 - abs(residual[i]))
    factor = (columns - 1) / columns if columns > 1 else 1.0
    for node in range(_NODES):
        gradient[node] = factor * gradient[node] / curvature[node] if curvature[node] > 1e-150 else 0.0
    return gradient
