"""Linear probe by the thesis's protocol (Table 4.1; METHOD.md section 5).

Multinomial logistic regression with an L2 penalty on the weights (not on the intercept), in the sum-of-losses
convention: ``sum_i CE(W x_i + b, y_i) + penalty / 2 |W|^2``, scikit-learn's ``C = 1 / penalty``. The penalty is
chosen on validation images, the model fitted again on all training images and scored on the test images.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsiam import params
from diffsiam.evaluation import knn, metrics, store


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes:
        weights: (d, classes); intercept: (classes,).
        iterations: steps of the solver.
        gradient: largest entry of the gradient of the mean loss, penalty included.
        converged: ``gradient`` is below the tolerance asked for.
    """

    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    iterations: int
    gradient: float
    converged: bool

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Labels (N,) of features (N, d)."""
        return (x @ self.weights.astype(x.dtype) + self.intercept.astype(x.dtype)).argmax(axis=1)


def path(
    x: NDArray[np.float32], y: NDArray[np.int64], classes: int, penalties: NDArray[np.float64], tolerance: float
) -> Iterator[Fit]:
    """Fits for each of the penalties, each started from the one before.

    Args:
        x: (N, d); y: (N,) in 0..classes-1.
        penalties: best falling: heavily penalised fits are easy and lead to the others.
        tolerance: a fit ends when the largest entry of the gradient of the mean loss is below it.
    """
    import scipy.optimize

    mean = x.mean(axis=0, dtype=np.float64)
    centred = np.hstack([x - mean, np.ones((len(x), 1))])
    theta = np.zeros((centred.shape[1], classes))
    shape = theta.shape
    for penalty in penalties:

        def loss(flat: NDArray[np.float64], penalty: float = penalty) -> tuple[float, NDArray[np.float64]]:
            w = flat.reshape(shape)
            logits = centred @ w
            logits -= logits.max(axis=1, keepdims=True)
            p = np.exp(logits)
            total = p.sum(axis=1)
            value = (np.log(total) - logits[np.arange(len(y)), y]).sum() + penalty / 2 * (w[:-1] ** 2).sum()
            p /= total[:, None]
            p[np.arange(len(y)), y] -= 1
            gradient = centred.T @ p
            gradient[:-1] += penalty * w[:-1]
            return value / len(y), gradient.ravel() / len(y)

        options = {"maxiter": 3000, "gtol": tolerance, "ftol": 0.0}
        found = scipy.optimize.minimize(loss, theta.ravel(), jac=True, method="L-BFGS-B", options=options)
        theta = found.x.reshape(shape)
        size = float(np.abs(found.jac).max())
        yield Fit(theta[:-1].copy(), theta[-1] - mean @ theta[:-1], found.nit, size, size <= tolerance)


def run(features: Path, meta: Path, cfg: params.Linear, out: Path, *, method: str, seed: int) -> None:
    """Evaluate stored features and write the result as JSON.

    Of penalties with equal validation accuracy the largest is chosen. ``at_edge`` says that the chosen penalty is
    the smallest or largest of the grid, where a wider grid might do better; a warning goes to stderr.

    Raises:
        UserError: see `store.read`.
    """
    data = store.read(features, meta)
    classes = len(data.classes)
    train, test = _standardized(data) if cfg.standardize else (data.train, data.test)
    fit, held_out = data.fit_and_validation()
    penalties = np.geomspace(cfg.penalty_max, cfg.penalty_min, cfg.penalties)
    validation = []
    for penalty, model in zip(
        penalties, path(train[fit], data.train_labels[fit], classes, penalties, cfg.tolerance), strict=True
    ):
        counts = metrics.confusion(data.train_labels[held_out], model.predict(train[held_out]), classes)
        entry = {"l2": float(penalty), "accuracy": metrics.score(counts, data.meta["metric"]).accuracy}
        validation.append(entry | {"iterations": model.iterations, "converged": model.converged})
    best = max(range(len(penalties)), key=lambda i: validation[i]["accuracy"])  # the first, so largest, of equals
    at_edge = len(penalties) > 1 and best in (0, len(penalties) - 1)
    if at_edge:
        print(
            f"linear probe of {method} on {data.dataset}: the best penalty, {penalties[best]:g}, is at the edge of "
            f"the grid [{cfg.penalty_min:g}, {cfg.penalty_max:g}]; widen linear.penalty_min or penalty_max.",
            file=sys.stderr,
        )
    (final,) = path(train, data.train_labels, classes, penalties[best : best + 1], cfg.tolerance)
    counts = metrics.confusion(data.test_labels, final.predict(test), classes)
    neighbours = metrics.confusion(data.test_labels, knn.predict(train, data.train_labels, test), classes)
    score = metrics.score(counts, data.meta["metric"])
    result: dict[str, Any] = {
        "method": method,
        "dataset": data.dataset,
        "seed": seed,
        "metric": data.meta["metric"],
        "accuracy": score.accuracy,
        "ci95": score.ci95,
        "l2": float(penalties[best]),
        "at_edge": at_edge,
        "converged": final.converged,
        "n_train": len(train),
        "n_test": len(test),
        "validation": validation,
        "knn": {"k": knn.K, "accuracy": metrics.score(neighbours, data.meta["metric"]).accuracy},
        "per_class": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(data.classes, metrics.per_class(counts), strict=True)
        },
        "confusion": counts.tolist(),
    }
    store.write_result(out, result)


def _standardized(data: store.FeatureSet) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Training and test features with zero mean and unit variance over the training images."""
    mean, std = data.train.mean(axis=0), data.train.std(axis=0)
    std[std == 0] = 1
    return (data.train - mean) / std, (data.test - mean) / std
