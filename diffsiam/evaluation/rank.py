"""How many of their dimensions features use."""

from __future__ import annotations

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


def measure(features: NDArray[Any]) -> dict[str, float | int]:
    """Both of (N, d) features, and d."""
    return {
        "rankme": round(rankme(features), DECIMALS),
        "participation": round(participation_ratio(features), DECIMALS),
        "dimensions": features.shape[1],
    }
