"""TAD by plain loops over scikit-learn's scores, and of planted codes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.model_selection import KFold

from diffsiam.evaluation import detectors


def independent(count: int, attributes: int) -> np.ndarray:
    """Labels (N, A) in which all combinations are equally often."""
    rows = np.arange(count)[:, None] >> np.arange(attributes) & 1
    return np.random.default_rng(0).permutation(rows).astype(np.uint8)


def noise(*shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(1).normal(scale=scale, size=shape)


def by_loops(units: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    total, captured = 0.0, 0
    for i, y in enumerate(labels.T):
        areas = sorted((max(roc_auc_score(y, u), roc_auc_score(y, -u)) for u in units.T), reverse=True)
        entropy = mutual_info_score(y, y)
        shared = max(mutual_info_score(y, other) for k, other in enumerate(labels.T) if k != i) / entropy
        if areas[0] >= 0.75 and shared <= 0.2:
            total, captured = total + areas[0] - areas[1], captured + 1
    return total, captured


@pytest.fixture
def mixed() -> tuple[np.ndarray, np.ndarray]:
    """Attributes that are told well, badly and by two units, two that tell each other, and tied units."""
    y = np.hstack([independent(200, 5), np.zeros((200, 2), np.uint8)])
    y[:, 5], y[:, 6] = y[:, 0] | y[:, 1], np.where(np.arange(200) % 10 == 0, 1 - y[:, 2], y[:, 2])
    units = y[:, [0, 1, 1, 2, 3, 4]] + noise(200, 6) * [0.8, 0.8, 0.8, 0.8, 0.8, 2]
    return np.hstack([-units, units.round()]), y


def test_tad_is_that_of_plain_loops(mixed: tuple[np.ndarray, np.ndarray]) -> None:
    expected = by_loops(*mixed)
    assert 0 < expected[1] < 7
    assert detectors.tad(*mixed) == pytest.approx(expected)


def test_folds_are_scikit_learns_train_parts(mixed: tuple[np.ndarray, np.ndarray]) -> None:
    parts = [by_loops(mixed[0][p], mixed[1][p]) for p, _ in KFold(5, shuffle=True, random_state=0).split(mixed[0])]
    tads, captured = zip(*parts, strict=True)
    expected = {"tad": np.mean(tads), "tad_std": np.std(tads), "captured": np.mean(captured)}
    assert detectors.folds(*mixed) == pytest.approx(expected)


def test_one_unit_for_each_attribute_counts_half_of_each_and_two_count_nothing() -> None:
    y = independent(4096, 4)
    units = y - 2.0 * y * (np.arange(4) % 2) + noise(4096, 4, scale=1e-3)  # two rise with their attribute, two fall
    value, captured = detectors.tad(units, y)
    assert captured == 4
    assert value == pytest.approx(4 * (1 - 0.5), abs=0.05)
    assert detectors.tad(np.hstack([units, -units]), y) == (pytest.approx(0), 4)


def test_an_attribute_that_another_tells_and_one_that_all_have_are_not_captured() -> None:
    y = independent(256, 3)
    y = np.hstack([y, 1 - y[:, :1], np.ones((256, 1), np.uint8)])
    assert detectors.tad(y.astype(float), y)[1] == 2
    assert np.isnan(detectors.auroc(y.astype(float), y)[4]).all()


def test_a_single_unit_stands_against_chance() -> None:
    y = independent(64, 1)
    assert detectors.tad(y.astype(float), y) == (0.5, 1)


def test_units_are_the_first_principal_components_of_segments() -> None:
    z = noise(50, 7) @ np.diag(np.arange(1.0, 8)) + 5
    units = detectors.components(z.astype(np.float32), np.array([0, 3, 3, 7]))
    expected = np.hstack([PCA(1).fit_transform(z[:, part]) for part in np.s_[:3, 3:]])
    assert np.abs(units) == pytest.approx(np.abs(expected), rel=1e-4, abs=1e-4)
    tied = detectors.components(np.repeat(z[:1], 50, axis=0) + np.eye(50, 7), np.array([0, 7]))
    assert len(np.unique(tied[7:])) == 1
