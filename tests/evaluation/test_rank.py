"""Ranks of features with a known spectrum, and of others by a decomposition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from diffsiam.evaluation import rank


def with_singular_values(values: list[float], rows: int, columns: int) -> np.ndarray:
    """(rows, columns), centred: the mean of every column is 0, so covariance and features have the same directions."""
    rng = np.random.default_rng(0)
    left = rng.normal(size=(rows, len(values)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]  # in the span of centred columns
    right = np.linalg.qr(rng.normal(size=(columns, len(values))))[0]
    return left * values @ right.T


@pytest.mark.parametrize("shape", [(60, 9), (9, 60)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_ranks_of_planted_singular_values_are_those_by_hand(shape: tuple[int, int], scale: float) -> None:
    features = scale * with_singular_values([4.0, 2.0, 1.0, 1.0], *shape)
    shares = [1 / 2, 1 / 4, 1 / 8, 1 / 8]
    assert rank.rankme(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), abs=1e-5)
    assert rank.rankme(features) == pytest.approx(2**1.75, abs=1e-5)
    assert rank.participation_ratio(features) == pytest.approx((16 + 4 + 1 + 1) ** 2 / (256 + 16 + 1 + 1))


@pytest.mark.parametrize("shape", [(60, 9), (9, 60)])
def test_one_direction_is_rank_one_and_equal_directions_are_all_counted(shape: tuple[int, int]) -> None:
    for count in (1, 3, 8):
        features = with_singular_values([5.0] * count, *shape)
        assert rank.rankme(features) == pytest.approx(count, abs=1e-5)
        assert rank.participation_ratio(features) == pytest.approx(count)


def test_both_agree_with_decompositions_of_scipy() -> None:
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(50, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32)
    values = scipy.linalg.svdvals(features.astype(np.float64))
    shares = values / values.sum()
    eigenvalues = scipy.linalg.eigvalsh(np.cov(features.astype(np.float64), rowvar=False))
    assert rank.measure(features) == {
        "rankme": pytest.approx(math.exp(-(shares * np.log(shares)).sum()), abs=1e-5),
        "participation": pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), abs=1e-5),
        "dimensions": 12,
    }


def test_a_common_mean_counts_for_rankme_and_not_for_the_participation_ratio() -> None:
    features = with_singular_values([1.0, 1.0, 1.0], 60, 9)
    moved = features + 100
    assert rank.participation_ratio(moved) == pytest.approx(3)
    assert rank.rankme(moved) < 1.1 < rank.rankme(features)


def test_how_well_segments_tell_each_other_is_the_mean_r2_of_linear_regressions() -> None:
    rng = np.random.default_rng(2)
    features = (rng.normal(size=(200, 9)) @ rng.normal(size=(9, 9)) + 3).astype(np.float32)
    features[:, 7:] = 5.0  # a segment that does not vary
    edges = np.array([0, 2, 5, 7, 9])
    parts = [features[:, low:high].astype(np.float64) for low, high in ((0, 2), (2, 5), (5, 7))]
    scores = []
    for i, given in enumerate(parts):
        for j, asked in enumerate(parts):
            if i != j:
                predicted = LinearRegression().fit(given, asked).predict(given)
                scores.append(r2_score(asked, predicted, multioutput="variance_weighted"))
    assert len(scores) == 6
    assert rank.segments_r2(features, edges) == pytest.approx(np.mean(scores), abs=1e-5)
    assert rank.measure(features, edges)["segments_r2"] == pytest.approx(np.mean(scores), abs=1e-5)


def test_copies_and_turned_copies_tell_each_other_and_independent_segments_do_not() -> None:
    rng = np.random.default_rng(3)
    one = rng.normal(size=(5000, 4))
    turned = one @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    edges = np.array([0, 4, 8])
    assert rank.segments_r2(np.hstack([one, turned]), edges) == pytest.approx(1)
    assert rank.segments_r2(np.hstack([one, rng.normal(size=(5000, 4))]), edges) < 0.002
    assert rank.segments_r2(np.ones((7, 8)), edges) == 0


@pytest.mark.parametrize(("value", "rankme"), [(0.0, 1.0), (2.0, 1.0)])
def test_equal_features_vary_in_no_direction(value: float, rankme: float) -> None:
    found = rank.measure(np.full((7, 4), value, np.float32))
    assert (found["rankme"], found["participation"]) == (pytest.approx(rankme), 0)
