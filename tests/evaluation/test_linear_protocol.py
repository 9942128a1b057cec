"""The linear probe against scikit-learn's LogisticRegression, run by the same protocol on real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from diffsiam import params
from diffsiam.data import prepare
from diffsiam.evaluation import linear, store

CFG = params.Linear(9, 1e-4, 1e4, False, 1e-6)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixels of the digits as features, beside their meta.json and the probe's result."""
    folder = tmp_path_factory.mktemp("digits")
    prepare.run("digits", params.Data("none", 8, 0.0, 0.2, 0), folder)
    arrays = []
    for split in ("train", "test"):
        images = np.load(folder / f"images_{split}.npy")
        arrays += [images[..., 0].reshape(len(images), -1) / 255.0, np.load(folder / f"labels_{split}.npy")]
    store.write(folder / "features.npz", *arrays)
    linear.run(folder / "features.npz", folder / "meta.json", CFG, folder / "linear.json", method="simsiam", seed=0)
    return folder


def sklearn_model(x: np.ndarray, y: np.ndarray, penalty: float) -> LogisticRegression:
    return LogisticRegression(C=1 / penalty, tol=1e-6, max_iter=5000).fit(x.astype(np.float64), y)


def test_no_fit_has_a_higher_loss_than_scikit_learns(digits: Path) -> None:
    data = store.read(digits / "features.npz", digits / "meta.json")
    penalties = np.geomspace(1e4, 1e-4, 9)
    x, y = data.train, data.train_labels
    for penalty, fit in zip(penalties, linear.path(x, y, 10, penalties, 1e-7), strict=True):
        theirs = sklearn_model(x, y, penalty)
        scores = x.astype(np.float64) @ fit.weights + fit.intercept
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        ours = log_loss(y, p / p.sum(axis=1, keepdims=True), normalize=False) + penalty / 2 * (fit.weights**2).sum()
        reference = log_loss(y, theirs.predict_proba(x.astype(np.float64)), normalize=False)
        reference += penalty / 2 * (theirs.coef_**2).sum()
        assert ours <= reference * (1 + 1e-4) + 1e-6, penalty


def test_accuracy_and_penalty_are_those_of_scikit_learn_by_the_same_protocol(digits: Path) -> None:
    data = store.read(digits / "features.npz", digits / "meta.json")
    result = json.loads((digits / "linear.json").read_text())
    fit, held_out = data.fit_and_validation()
    curve = {
        penalty: 100
        * sklearn_model(data.train[fit], data.train_labels[fit], penalty).score(
            data.train[held_out], data.train_labels[held_out]
        )
        for penalty in np.geomspace(1e4, 1e-4, 9)
    }
    best = max(curve, key=lambda penalty: curve[penalty])
    chosen = next(value for penalty, value in curve.items() if np.isclose(penalty, result["l2"]))
    assert chosen >= curve[best] - 100 / len(held_out) - 1e-9  # the same, or a tie up to one image
    theirs = sklearn_model(data.train, data.train_labels, result["l2"]).score(data.test, data.test_labels)
    assert abs(result["accuracy"] - 100 * theirs) <= 0.2
