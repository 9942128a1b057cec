"""The path of penalties against scikit-learn's warm-started loop: rows linear_10 and linear_100."""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable
from unittest import mock

import numpy as np
import scipy.special
import threadpoolctl
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from diffsiam import params
from diffsiam.evaluation import compiled, logistic
from tests.benchmarks.common import THREADS, features, seconds

Model = tuple[NDArray[np.float64], NDArray[np.float64]]  # weights (d, classes) and intercept


def bench(images: int, classes: int, noise: float) -> list[dict[str, object]]:
    """45 penalties from stored features; ours twice, around the reference."""
    cfg = params.section(params.read("workflow/presets/thesis.yaml"), params.Linear)
    penalties = np.geomspace(cfg.penalty_max, cfg.penalty_min, cfg.penalties)
    x, y = features(images, dim=512, classes=classes, noise=noise)
    ours: list[logistic.Fit] = []
    theirs: list[Model] = []
    steps: list[int] = []

    def path() -> None:
        ours[:] = logistic.path(x, y, classes, penalties, cfg.tolerance)

    def reference() -> None:
        double = x.astype(np.float64)
        model = LogisticRegression(warm_start=True, tol=1e-4, max_iter=1000)
        for penalty in penalties[::-1]:
            model.set_params(C=1 / penalty).fit(double, y)
            theirs.insert(0, (model.coef_.T.copy(), model.intercept_.copy()))
            steps.append(int(model.n_iter_[0]))

    with threadpoolctl.threadpool_limits(THREADS), mock.patch.object(compiled, "threads", return_value=THREADS):
        mine = [seconds(path)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            reference_seconds = seconds(reference)
        mine += [seconds(path), seconds(path)]
    excess = max(
        loss(x, y, fit.weights, fit.intercept, fit.penalty) - loss(x, y, *model, fit.penalty)
        for fit, model in zip(ours, theirs, strict=True)
    )
    note = (
        f"{images} x 512, {classes} classes, {cfg.penalties} penalties, {THREADS} threads; ours: median of 3 around "
        f"one run of scikit-learn; {sum(f.iterations for f in ours)} against {sum(steps)} steps; largest excess of "
        f"our loss over scikit-learn's at any penalty {excess:.1e}"
    )
    a, b = statistics.median(mine), reference_seconds
    row = {"name": f"linear_{classes}", "ours_seconds": a, "reference_seconds": b, "ratio": b / a, "note": note}
    return [row]


def loss(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    weights: NDArray[np.float64],
    intercept: NDArray[np.float64],
    penalty: float,
) -> float:
    """Mean penalised loss by the definition, in float64."""
    scores = x.astype(np.float64) @ weights + intercept
    cross_entropy = scipy.special.logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
    return float(cross_entropy.mean() + penalty / 2 * (weights**2).sum() / len(y))


BENCHES: dict[str, Callable[[], list[dict[str, object]]]] = {
    "linear_10": functools.partial(bench, 50_000, 10, 3.0),
    "linear_100": functools.partial(bench, 20_000, 100, 2.0),
}
