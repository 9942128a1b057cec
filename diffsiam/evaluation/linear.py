"""Linear probe by the thesis's protocol (Table 4.1).

Multinomial logistic regression with an L2 penalty on the weights (not on the intercept), in the sum-of-losses
convention: scikit-learn's ``C = 1 / penalty``. The penalty is chosen on validation images, the model fitted again
on all training images and scored on the test images. Fits go to the optimum; with `linear.solver: capped` they end
where the code that the protocol comes from ends them (linusericsson/ssl-transfer).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsiam import params
from diffsiam.errors import UserError
from diffsiam.evaluation import knn, logistic, metrics, rank, store

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the validation images say.

    Attributes:
        curve: one entry per penalty, in the order of the fits: l2, validation accuracy in percent, steps, convergence.
        model: the fit of the chosen penalty.
        at_edge: the chosen penalty is the smallest or largest of the grid: a wider one might do better.
        capped: what made the fits, where `params.Linear.solver` asks for it.
    """

    curve: list[dict[str, Any]]
    model: logistic.Fit
    at_edge: bool
    capped: logistic.Capped | None = None


def choose(
    x: Features, y: Labels, validation: Features, labels: Labels, classes: int, cfg: params.Linear, metric: str
) -> Choice:
    """Fit (N, d) features ``x`` with labels ``y`` for every penalty, and take the one with the best score on
    ``validation``; of equals, the largest penalty, with the capped solver the smallest."""
    penalties = np.geomspace(cfg.penalty_max, cfg.penalty_min, cfg.penalties)
    capped = logistic.Capped() if cfg.solver == "capped" else None
    if capped:
        penalties = np.geomspace(cfg.penalty_min, cfg.penalty_max, cfg.penalties)
        fits = capped.path(x, y, classes, penalties)
    else:
        fits = logistic.path(x, y, classes, penalties, cfg.tolerance)
    curve: list[dict[str, Any]] = []
    best, model = -1.0, None
    for fit in fits:
        counts = metrics.confusion(labels, fit.predict(validation), classes)
        accuracy = metrics.score(counts, metric).accuracy
        curve.append(
            {"l2": fit.penalty, "accuracy": accuracy, "iterations": fit.iterations, "converged": fit.converged}
        )
        if accuracy > best:
            best, model = accuracy, fit
    assert model is not None  # a grid has at least one penalty
    at_edge = len(penalties) > 1 and model.penalty in (penalties[0], penalties[-1])
    return Choice(curve, model, bool(at_edge), capped)


def accuracy(
    train: Features,
    labels: Labels,
    validation: NDArray[np.int64],
    test: Features,
    classes: int,
    cfg: params.Linear,
    metric: str,
) -> tuple[Choice, logistic.Fit, Labels]:
    """The protocol on arrays.

    Args:
        train: (N, d); ``validation`` holds the rows of it that choose the penalty.
    Returns:
        The choice, the model fitted on all of ``train``, and its predictions on ``test``.
    """
    if cfg.standardize:
        mean, std = train.mean(axis=0), train.std(axis=0)
        std[std == 0] = 1
        train, test = (train - mean) / std, (test - mean) / std
    fit = np.setdiff1d(np.arange(len(train)), validation)
    choice = choose(train[fit], labels[fit], train[validation], labels[validation], classes, cfg, metric)
    penalty = choice.model.penalty
    if choice.capped:
        (final,) = choice.capped.path(train, labels, classes, [penalty])
    else:
        (final,) = logistic.path(train, labels, classes, [penalty], cfg.tolerance, start=choice.model)
    return choice, final, final.predict(test)


def run(features: Path, meta: Path, cfg: params.Linear, out: Path, *, method: str, seed: int) -> None:
    """Evaluate stored features and write the result of `evaluate` as JSON.

    Raises:
        UserError: see `store.read` and `evaluate`.
    """
    store.write_result(out, evaluate(store.read(features, meta), cfg, method=method, seed=seed))


def evaluate(data: store.FeatureSet, cfg: params.Linear, *, method: str, seed: int) -> dict[str, Any]:
    """Test score with its interval, the whole validation curve, k-nearest-neighbour accuracy of test and of validation
    images, the rank of the test features, the accuracy of each class with the confusion matrix, and which test images
    are classified rightly (`metrics.pack`).

    Warns on stderr where the best penalty lies at an end of the grid, or a fit ended above the tolerance.

    Args:
        method: of the encoder, for the record.
        seed: see ``method``.
    Raises:
        UserError: fewer than two classes.
    """
    metric, classes = data.meta["metric"], len(data.classes)
    if classes < 2:  # whatever a probe answers would be right
        raise UserError(f"{data.dataset} has no classes to tell apart. Choose a data set with two or more.")
    choice, final, predicted = accuracy(data.train, data.train_labels, data.validation, data.test, classes, cfg, metric)
    counts = metrics.confusion(data.test_labels, predicted, classes)
    _warn(choice, final, cfg, f"linear probe of {method} on {data.dataset}")
    nearest = knn.predict(data.train, data.train_labels, data.test)
    fit = np.setdiff1d(np.arange(len(data.train)), data.validation)
    closest = knn.predict(data.train[fit], data.train_labels[fit], data.train[data.validation])
    told = metrics.confusion(data.train_labels[data.validation], closest, classes)
    score = metrics.score(counts, metric)
    per_class = [None if np.isnan(value) else float(value) for value in metrics.per_class(counts)]
    return {
        "method": method,
        "dataset": data.dataset,
        "seed": seed,
        "metric": metric,
        "accuracy": score.accuracy,
        "ci95": score.ci95,
        "l2": final.penalty,
        "at_edge": choice.at_edge,
        "converged": final.converged,
        "n_train": len(data.train),
        "n_test": len(data.test),
        "validation": choice.curve,
        "knn": {
            "k": knn.K,
            "accuracy": metrics.score(metrics.confusion(data.test_labels, nearest, classes), metric).accuracy,
            "validation": metrics.score(told, metric).accuracy,
        },
        "rank": rank.measure(data.test, data.edges),
        "per_class": dict(zip(data.classes, per_class, strict=True)),
        "confusion": counts.tolist(),
        "correct": metrics.pack(predicted == data.test_labels, data.test_labels),
    }


def _warn(choice: Choice, final: logistic.Fit, cfg: params.Linear, what: str) -> None:
    if choice.at_edge:
        print(
            f"{what}: the best penalty, {final.penalty:g}, is at the edge of the grid [{cfg.penalty_min:g}, "
            f"{cfg.penalty_max:g}]; widen linear.penalty_min or linear.penalty_max.",
            file=sys.stderr,
        )
    slow = [entry["l2"] for entry in choice.curve if not entry["converged"]]
    slow += [] if final.converged else [final.penalty]
    if slow and cfg.solver == "exact":
        print(
            f"{what}: the fits with penalties {', '.join(f'{p:g}' for p in slow)} ended with a gradient above "
            f"linear.tolerance, {cfg.tolerance:g}; raise it, or set linear.standardize.",
            file=sys.stderr,
        )
