"""Multinomial logistic regression with an L2 penalty, along a path of penalties, as one computation.

Each fit minimises ``sum_i CE(W x_i + b, y_i) + penalty / 2 |W|^2``; the intercept ``b`` is not penalised. Four
things make a path of 45 penalties cost a few hundred passes over the features:

- L-BFGS starts from the inverse of a Kronecker model of the Hessian, ``A (x) B + penalty``: ``A`` is the
  covariance of the features, ``B`` the mean covariance of the predicted classes.
- Neighbouring fits share curvature: the pairs of L-BFGS are carried along the path, where a change of penalty
  changes them by an exact multiple of the step.
- Each fit starts from the two before, extrapolated in the logarithm of the penalty.
- Products run in float32 on blocks of rows that stay in the cache, one block per thread, and are summed in float64
  in the order of the blocks, so that the number of threads does not change a bit. A fit that float32 cannot
  bring below the tolerance goes on in float64.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from diffsiam.evaluation.compiled import over_blocks

BLOCK = 2048  # rows of a product
PAIRS = 20  # steps that L-BFGS remembers
ITERATIONS = 5000  # of one fit, at most
SINGLE = 100  # of them in float32, at most
EXTRAPOLATE = 2  # neighbouring fits that the next one starts from
SAMPLE = 8192  # images that B is estimated from

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes:
        weights: (d, classes); intercept: (classes,).
        penalty: in the sum-of-losses convention.
        loss: mean over images of cross-entropy plus penalty, to the rounding of float32 (about 1e-5).
        gradient: largest entry of the gradient of ``loss``.
        iterations: steps taken.
        converged: ``gradient`` is not above the tolerance asked for.
    """

    weights: Array
    intercept: Array
    penalty: float
    loss: float
    gradient: float
    iterations: int
    converged: bool

    def predict(self, x: NDArray[np.floating]) -> NDArray[np.int64]:
        """Labels (N,) of features (N, d)."""
        return (x @ self.weights.astype(x.dtype) + self.intercept.astype(x.dtype)).argmax(axis=1)


class Capped:
    """scikit-learn's L-BFGS as linusericsson/ssl-transfer runs it: at most 100 steps a fit, each begun where the last
    one ended, whatever penalty or images that had. What it gives depends on the order of the fits."""

    def __init__(self) -> None:
        from sklearn.linear_model import LogisticRegression  # half the start of a job that does not use it

        self.model = LogisticRegression(warm_start=True)

    def path(
        self, x: NDArray[np.float32], y: NDArray[np.int64], classes: int, penalties: Collection[float]
    ) -> Iterator[Fit]:
        """Fits for ``penalties`` in their order; see `path`."""
        from sklearn.exceptions import ConvergenceWarning

        for penalty in penalties:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                self.model.set_params(C=1 / penalty).fit(x, y)
            weights, intercept = np.zeros((x.shape[1], classes)), np.full(classes, -np.inf)
            rows, bias = self.model.coef_, self.model.intercept_
            if len(rows) == 1:  # of two classes scikit-learn keeps the difference
                rows, bias = np.stack([0 * rows[0], rows[0]]), np.array([0, bias[0]])
            weights[:, self.model.classes_], intercept[self.model.classes_] = rows.T, bias
            steps = int(self.model.n_iter_.max())
            yield Fit(weights, intercept, float(penalty), np.nan, np.nan, steps, steps < self.model.max_iter)


class _Point(NamedTuple):
    """Parameters (classes, d + 1) for centred features, intercept last, with loss and gradient there."""

    theta: Array
    loss: float
    gradient: Array


class _Problem:
    """Loss and derivatives of one data set, in float32 or float64."""

    def __init__(self, x: NDArray[np.float32], y: NDArray[np.int64], classes: int) -> None:
        self.mean = x.mean(axis=0, dtype=np.float64)
        self.raw = x
        self.x: NDArray[np.floating] = self.centred(np.float32)
        self.y, self.classes = y, classes
        covariance = sum(
            over_blocks(lambda i, j: (self.x[i:j].T @ self.x[i:j]).astype(np.float64), len(x), BLOCK)
        ) / len(x)
        scales, self.basis = np.linalg.eigh(covariance)
        self.scales = np.append(np.maximum(scales, 0), 1)  # the intercept's feature is 1
        self.penalised = np.append(np.ones(x.shape[1]), 0)

    def centred(self, dtype: type[np.floating]) -> NDArray[np.floating]:
        """The features less their mean, rounded once."""
        return (self.raw - self.mean).astype(dtype)

    def evaluate(self, theta: Array, penalty: float) -> _Point:
        """Loss and gradient, per image, at ``theta``; ``penalty`` per image too."""
        w, b = theta[:, :-1].astype(self.x.dtype), theta[:, -1:].astype(self.x.dtype)

        def block(start: int, stop: int) -> tuple[float, Array]:
            x, y = self.x[start:stop], self.y[start:stop]
            p = w @ x.T
            p += b
            own = p[y, np.arange(len(y))]
            log_total = _softmax(p)
            p[y, np.arange(len(y))] -= 1
            gradient = np.hstack([p @ x, p.sum(axis=1, keepdims=True)])
            return float((log_total - own).sum(dtype=np.float64)), gradient.astype(np.float64)

        losses, gradients = zip(*over_blocks(block, len(self.x), BLOCK), strict=True)
        pull = penalty * self.penalised * theta
        loss = sum(losses) / len(self.x) + (pull * theta).sum() / 2
        return _Point(theta, loss, sum(gradients) / len(self.x) + pull)

    def size(self, point: _Point) -> float:
        """Largest entry of the gradient in the features' own, not centred, coordinates."""
        by_class = point.gradient[:, -1:]
        return float(max(np.abs(point.gradient[:, :-1] + by_class * self.mean).max(), np.abs(by_class).max()))

    def preconditioner(self, theta: Array, penalty: float) -> _Preconditioner:
        """The inverse of the Kronecker model of the Hessian at ``theta``."""
        x = self.x[:: -(-len(self.x) // SAMPLE)]
        p = theta[:, :-1].astype(x.dtype) @ x.T + theta[:, -1:].astype(x.dtype)
        _softmax(p)
        p = p.astype(np.float64)
        b, classes = np.linalg.eigh(np.diag(p.mean(axis=1)) - p @ p.T / p.shape[1])
        b = np.maximum(b, 1e-6 * b[-1])  # adding a constant to all scores changes nothing: b has a zero
        return _Preconditioner(classes, self.basis, b[:, None] * self.scales + penalty * self.penalised)


@dataclasses.dataclass(frozen=True)
class _Preconditioner:
    classes: Array
    basis: Array
    scales: Array

    def __call__(self, gradient: Array) -> Array:
        g = self.classes.T @ gradient
        g[:, :-1] @= self.basis
        g /= self.scales
        g[:, :-1] @= self.basis.T
        return self.classes @ g


class _Curvature:
    """The pairs of L-BFGS: steps and the changes of the gradient that they made."""

    def __init__(self, penalised: Array) -> None:
        self.penalised = penalised
        self.pairs: deque[tuple[Array, Array]] = deque(maxlen=PAIRS)

    def add(self, step: Array, change: Array) -> None:
        if (step * change).sum() > 1e-12 * np.sqrt((step**2).sum() * (change**2).sum()):
            self.pairs.append((step, change))

    def shift(self, change: float) -> None:
        """Account for a change of the penalty per image."""
        for step, gradient_change in self.pairs:
            gradient_change += change * self.penalised * step

    def direction(self, gradient: Array, inverse: _Preconditioner) -> Array:
        """Minus the L-BFGS estimate of the inverse Hessian, times the gradient (Nocedal's two loops)."""
        q = gradient.copy()
        weights = []
        for step, change in reversed(self.pairs):
            weights.append(np.vdot(step, q) / np.vdot(step, change))
            q -= weights[-1] * change
        r = inverse(q)
        if self.pairs:
            step, change = self.pairs[-1]
            r *= np.vdot(step, change) / np.vdot(change, inverse(change))
        for (step, change), weight in zip(self.pairs, reversed(weights), strict=True):
            r += (weight - np.vdot(change, r) / np.vdot(step, change)) * step
        return -r


def _softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Turn scores (classes, n) into probabilities in place; returns the logarithm of the sum of exponentials."""
    top = scores.max(axis=0)
    scores -= top
    np.exp(scores, out=scores)
    total = scores.sum(axis=0)
    scores /= total
    return np.log(total) + top


def path(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    classes: int,
    penalties: Sequence[float] | Array,
    tolerance: float,
    start: Fit | None = None,
) -> Iterator[Fit]:
    """Fits for each of the penalties in turn.

    Args:
        x: (N, d) features; y: (N,) labels in 0..classes-1.
        penalties: best falling, evenly in the logarithm: heavily penalised fits are easy and lead to the others.
        tolerance: a fit ends when the largest entry of the gradient of the mean loss is not above it.
        start: a model near the first of the fits, if there is one.
    """
    problem = _Problem(x, y, classes)
    curvature = _Curvature(problem.penalised)
    theta = np.zeros((classes, x.shape[1] + 1))
    if start is not None:
        theta = np.vstack([start.weights, start.intercept + problem.mean @ start.weights]).T
    known: deque[tuple[float, Array]] = deque(maxlen=EXTRAPOLATE)
    last = penalties[0] / len(x)
    for penalty in penalties:
        per_image = penalty / len(x)
        curvature.shift(per_image - last)
        initial = _extrapolate(known, np.log(penalty)) if known else theta
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            point, iterations = _fit(problem, curvature, initial, per_image, tolerance)
        theta, last = point.theta, per_image
        if all(place != np.log(penalty) for place, _ in known):
            known.append((np.log(penalty), theta))
        size = problem.size(point)
        weights = theta[:, :-1].T.copy()
        yield Fit(
            weights,
            theta[:, -1] - problem.mean @ weights,
            float(penalty),
            point.loss,
            size,
            iterations,
            size <= tolerance,
        )


def _extrapolate(known: Collection[tuple[float, Array]], at: float) -> Array:
    """The polynomial through the points of ``known`` (Lagrange)."""
    shares = [np.prod([(at - other) / (place - other) for other, _ in known if other != place]) for place, _ in known]
    return np.tensordot(shares, np.stack([theta for _, theta in known]), axes=1)


def _fit(
    problem: _Problem, curvature: _Curvature, theta: Array, penalty: float, tolerance: float
) -> tuple[_Point, int]:
    """Minimise from ``theta``; returns the last point and the number of steps."""
    point = problem.evaluate(theta, penalty)
    inverse = problem.preconditioner(theta, penalty)
    for iterations in range(ITERATIONS):
        single = problem.x.dtype == np.float32
        if problem.size(point) <= (tolerance / 2 if single else tolerance):  # half: room for rounding
            break
        new = _step(problem, point, curvature.direction(point.gradient, inverse), penalty)
        if new is not None:
            curvature.add(new.theta - point.theta, new.gradient - point.gradient)
            point = new
        elif curvature.pairs:  # they mislead
            curvature.pairs.clear()
            continue
        if single and (new is None or iterations >= SINGLE):
            problem.x = problem.centred(np.float64)
            point = problem.evaluate(point.theta, penalty)
        elif new is None:
            break
    return point, iterations


def _step(problem: _Problem, point: _Point, direction: Array, penalty: float) -> _Point | None:
    """The point along ``direction`` where the slope has at most half its size, or None.

    The loss is convex, so the slope rises along the line: secants find its zero, and a loss that falls by less
    than its rounding error does no harm.
    """
    slope = (point.gradient * direction).sum()
    if not slope < 0:
        return None
    low, low_slope, high, high_slope = 0.0, slope, np.inf, np.inf
    length = 1.0
    for _ in range(20):
        new = problem.evaluate(point.theta + length * direction, penalty)
        now = (new.gradient * direction).sum()
        if abs(now) <= 0.5 * abs(slope):
            return new
        if now < 0:
            low, low_slope = length, now
        else:
            high, high_slope = length, now
        if high < np.inf:
            length = low + (high - low) * np.clip(low_slope / (low_slope - high_slope), 0.1, 0.9)
        else:
            length = min(4 * low, low * slope / min(slope - low_slope, -1e-300))
    return None
