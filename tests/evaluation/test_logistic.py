from __future__ import annotations

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.linear_model import LogisticRegression

from diffsiam.evaluation import compiled, logistic

GRID = np.geomspace(1e5, 1e-6, 45)


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = sklearn.datasets.load_digits()
    return (data.data[:900] / 16).astype(np.float32), data.target[:900]


def correlated(images: int = 1200, dim: int = 96, classes: int = 7, seed: int = 0):
    """Averages of rectified units of a random map, overlapping classes: like pooled features of a network."""
    rng = np.random.default_rng(seed)
    scale = (1 + np.arange(24)) ** -0.5
    labels = rng.integers(0, classes, images)
    latent = (rng.normal(size=(classes, 24))[labels] + 2 * rng.normal(size=(images, 24))) * scale
    mixing, shift = rng.normal(size=(24, dim)), rng.normal(size=dim)
    x = sum(np.maximum((latent + rng.normal(size=latent.shape) * scale) @ mixing + shift, 0) for _ in range(3))
    return (0.2 * x).astype(np.float32), labels


def literal(x, y, weights, intercept, penalty) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean loss and its gradients in float64, by autograd from the definition."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(intercept, dtype=torch.float64, requires_grad=True)
    scores = torch.from_numpy(x).double() @ w + b
    cross_entropy = torch.nn.functional.cross_entropy(scores, torch.from_numpy(y), reduction="sum")
    loss = (cross_entropy + penalty / 2 * (w**2).sum()) / len(x)
    loss.backward()
    return float(loss.detach()), w.grad.numpy(), b.grad.numpy()


@pytest.mark.parametrize("data", [digits, correlated], ids=["digits", "correlated"])
def test_no_fit_has_a_higher_loss_than_scikit_learns_or_a_gradient_above_the_tolerance(data):
    x, y = data()
    fits = list(logistic.path(x, y, y.max() + 1, GRID, 1e-5))
    reference = LogisticRegression(warm_start=True, tol=1e-4, max_iter=1000)
    for fit in reversed(fits):  # scikit-learn takes the rising penalties
        reference.set_params(C=1 / fit.penalty).fit(x.astype(np.float64), y)
        theirs, _, _ = literal(x, y, reference.coef_.T, reference.intercept_, fit.penalty)
        ours, weights, intercept = literal(x, y, fit.weights, fit.intercept, fit.penalty)
        # Where scikit-learn's last step happens to land nearer to the minimum: a gradient of the tolerance in every
        # weight is worth 640 * tolerance^2 / (2 penalty / images), 1e-9 at the penalties where that was seen.
        assert ours <= theirs + 1e-9
        assert fit.loss == pytest.approx(ours, abs=2e-5)
        assert max(np.abs(weights).max(), np.abs(intercept).max()) <= 1e-5
        assert fit.converged


def test_a_tight_fit_equals_scikit_learns():
    x, y = correlated()
    for fit in logistic.path(x, y, 7, [300.0, 30.0], 1e-7):
        reference = LogisticRegression(C=1 / fit.penalty, tol=1e-8, max_iter=5000).fit(x.astype(np.float64), y)
        assert np.allclose(fit.weights, reference.coef_.T, atol=1e-3)
        shift = fit.intercept - reference.intercept_  # a constant added to all changes nothing
        assert np.allclose(shift, shift.mean(), atol=1e-3)


def test_loss_and_gradient_are_those_of_the_definition():
    x, y = correlated()
    problem = logistic._Problem(x, y, 7)
    problem.x = problem.centred(np.float64)
    theta = np.random.default_rng(0).normal(size=(7, 97))
    point = problem.evaluate(theta, penalty=0.3 / len(x))
    weights = theta[:, :-1].T
    loss, by_weights, by_intercept = literal(x, y, weights, theta[:, -1] - problem.mean @ weights, 0.3)
    assert point.loss == pytest.approx(loss, rel=1e-6)
    own = point.gradient[:, :-1].T + np.outer(problem.mean, point.gradient[:, -1])
    assert np.allclose(own, by_weights, atol=1e-6)
    assert np.allclose(point.gradient[:, -1], by_intercept, atol=1e-7)
    assert problem.size(point) == pytest.approx(np.abs(by_weights).max(), rel=1e-4)


def test_two_classes_solved_by_hand():
    """x = +-1 with labels 1, 0 and no images in between: by symmetry W = (-a, a), b = 0, where penalty a = s(-2a)."""
    x = np.array([[1.0], [-1.0]], np.float32)
    (fit,) = logistic.path(x, np.array([1, 0]), 2, [0.5], 1e-9)
    low, high = 0.0, 2.0
    for _ in range(60):
        a = (low + high) / 2
        low, high = (a, high) if 2 / (1 + np.exp(2 * a)) > 0.5 * a else (low, a)
    assert np.allclose(fit.weights, [[-a, a]], atol=1e-6)
    assert np.allclose(fit.intercept - fit.intercept.mean(), 0, atol=1e-7)


def test_results_depend_neither_on_threads_nor_on_the_route(monkeypatch):
    x, y = correlated()
    monkeypatch.setattr(logistic, "BLOCK", 256)
    *_, along = logistic.path(x, y, 7, GRID[10:20], 1e-6)
    monkeypatch.setattr(compiled, "threads", lambda: 1)
    *_, alone = logistic.path(x, y, 7, GRID[10:20], 1e-6)
    assert (along.weights == alone.weights).all()
    (direct,) = logistic.path(x, y, 7, GRID[19:20], 1e-6)
    assert along.loss == pytest.approx(direct.loss, rel=1e-6)
    (from_start,) = logistic.path(x, y, 7, GRID[19:20], 1e-6, start=along)
    assert from_start.iterations <= 1


def test_rotated_and_shifted_features_give_the_same_model():
    x, y = correlated()
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(96, 96)))[0]
    (fit,) = logistic.path(x, y, 7, [1.0], 1e-7)
    (turned,) = logistic.path((x @ rotation + 3).astype(np.float32), y, 7, [1.0], 1e-7)
    assert np.allclose(rotation.T @ fit.weights, turned.weights, atol=1e-3)


def test_what_float32_cannot_reach_goes_on_in_float64():
    x, y = correlated()
    far = 300 * x + np.float32(5000)
    (fit,) = logistic.path(far, y, 7, [1.0], 1e-5)
    _, weights, intercept = literal(far, y, fit.weights, fit.intercept, 1.0)
    assert fit.converged
    assert max(np.abs(weights).max(), np.abs(intercept).max()) < 1.05e-5


def test_a_fit_that_runs_out_of_steps_says_so(monkeypatch):
    x, y = correlated()
    monkeypatch.setattr(logistic, "ITERATIONS", 3)
    (fit,) = logistic.path(x, y, 7, [1e-3], 1e-8)
    assert not fit.converged
    assert fit.gradient > 1e-8


def test_constant_features_repeated_penalties_and_missing_classes_are_no_trouble():
    y = np.array([0, 0, 0, 2, 2, 1])
    for fit in logistic.path(np.ones((6, 4), np.float32), y, 4, [1.0, 1.0, 1.0, 1e-6], 1e-5):
        assert np.allclose(fit.weights, 0, atol=1e-6)
        probability = np.exp(fit.intercept) / np.exp(fit.intercept).sum()
        assert np.allclose(probability, [0.5, 1 / 6, 1 / 3, 0], atol=1e-3)
        assert (fit.predict(np.ones((2, 4), np.float32)) == 0).all()
