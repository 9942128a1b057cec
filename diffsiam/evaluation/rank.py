"""How many of their dimensions features use, and whether their segments say the same."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import NDArray

DECIMALS = 6  # kept: further ones depend on the order in which threads add up


def rankme(features: NDArray[Any]) -> float:
    """exp of the entropy of the singular values over their sum (RankMe, Garrido et al. 2023), of (N, d) features as
    they are, not centred: from 1 to min(N, d); 1 where all are zero."""
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    shares = values / max(values.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(scipy.special.entr(shares).sum()))


def participation_ratio(features: NDArray[Any]) -> float:
    """(sum l)^2 / sum l^2 of the eigenvalues l of the covariance of (N, d) features: from 1 to min(N - 1, d); 0 where
    all are equal. A step of training records the same of its batch."""
    x = features - features.mean(axis=0, dtype=np.float64)
    products = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return float(np.square(x).sum() ** 2 / max(np.square(products).sum(), np.finfo(np.float64).tiny))


def segments_r2(features: NDArray[Any], edges: NDArray[np.integer[Any]]) -> float:
    """How well one segment tells another: the mean over ordered pairs of R^2, the share of the variance of a segment's
    numbers that a linear model of another segment's numbers explains, on the same (N, d) features; from 0 to 1.

    Args:
        edges: (n + 1,), rising from 0 to d; n >= 2. A segment that does not vary is left out.
    """
    x = features - features.mean(axis=0, dtype=np.float64)
    covariance = x.T @ x
    parts = [slice(low, high) for low, high in itertools.pairwise(edges)]
    variances = np.array([covariance.diagonal()[part].sum() for part in parts])
    told = []
    for i, part in enumerate(parts):
        rows = covariance[part]
        explained = (rows * (np.linalg.pinv(rows[:, part], hermitian=True) @ rows)).sum(axis=0)
        others = [j for j in range(len(parts)) if j != i and variances[j] > 0]
        told += [explained[parts[j]].sum() / variances[j] for j in others if variances[i] > 0]
    return float(np.mean(told)) if told else 0.0


def measure(features: NDArray[Any], edges: NDArray[np.integer[Any]] | None = None) -> dict[str, float | int]:
    """Both ranks of (N, d) features, and d; of features in segments between ``edges`` also `segments_r2`."""
    found = {
        "rankme": round(rankme(features), DECIMALS),
        "participation": round(participation_ratio(features), DECIMALS),
        "dimensions": features.shape[1],
    }
    return found if edges is None else found | {"segments_r2": round(segments_r2(features, edges), DECIMALS)}
