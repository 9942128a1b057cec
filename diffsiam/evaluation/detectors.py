"""Total AUROC difference (TAD, Yeats et al. 2022): is each attribute told by one unit of a code alone?

As InfoDiffusion evaluates it, but for the units: exact AUROCs, on the train parts of five folds.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

IMAGES = 10_000  # that are looked at, the first ones
_FOLDS, _SEED = 5, 0
_TOLD, _SHARED = 0.75, 0.2  # an attribute is captured from this AUROC on, and up to this share of its entropy

Array = NDArray[np.floating]
Labels = NDArray[np.uint8]


def tad(units: Array, labels: Labels) -> tuple[float, int]:
    """TAD, and the number of attributes that are captured.

    Captured are attributes that the best unit tells by an AUROC of 0.75 or more, and of whose entropy no other
    attribute tells more than 0.2. Over them, TAD sums the AUROC of the best unit less that of the next.

    Args:
        units: (N, U); whether a unit rises or falls with the attribute is the same.
        labels: (N, A) in {0, 1}; an attribute that all images have, or none, is not captured.
    """
    area = auroc(units, labels)
    chance = np.full((labels.shape[1], 1), 0.5)  # of the next unit where there is but one
    second, best = np.sort(np.hstack([np.maximum(area, 1 - area), chance]), axis=1)[:, -2:].T
    captured = (best >= _TOLD) & (entropy_share(labels) <= _SHARED)
    return float((best - second)[captured].sum()), int(captured.sum())


def folds(units: Array, labels: Labels) -> dict[str, float]:
    """Mean and standard deviation of `tad` over the train parts of five folds, and the mean number captured."""
    from sklearn.model_selection import KFold

    parts = [part for part, _ in KFold(_FOLDS, shuffle=True, random_state=_SEED).split(units)]
    values, captured = zip(*(tad(units[part], labels[part]) for part in parts), strict=True)
    return {"tad": float(np.mean(values)), "tad_std": float(np.std(values)), "captured": float(np.mean(captured))}


def auroc(units: Array, labels: Labels) -> NDArray[np.float64]:
    """Area under the ROC curve of each attribute by each unit, (A, U); NaN where all images have it, or none."""
    ranks, present = scipy.stats.rankdata(units, axis=0), labels.astype(np.float64)
    count = present.sum(axis=0)[:, None]
    with np.errstate(invalid="ignore"):
        return (present.T @ ranks - count * (count + 1) / 2) / (count * (len(labels) - count))


def entropy_share(labels: Labels) -> NDArray[np.float64]:
    """How much of each attribute's entropy the other that tells most of it tells, (A,), in [0, 1]: the largest mutual
    information over the entropy; NaN where that is 0."""
    present = np.hstack([labels, 1 - labels]).astype(np.float64)
    joint = present.T @ present / len(labels)  # shares of images, (2A, 2A)
    a = labels.shape[1]
    of_pairs = scipy.special.entr(joint).reshape(2, a, 2, a).sum(axis=(0, 2))
    entropy = scipy.special.entr(joint.diagonal()).reshape(2, a).sum(axis=0)
    shared = entropy[:, None] + entropy - of_pairs
    np.fill_diagonal(shared, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared.max(axis=1) / entropy


def components(z: Array, edges: NDArray[np.int64]) -> Array:
    """The first principal component of each segment of z (N, d), for edges (n + 1,): units (N, n), less the segments
    without a dimension."""
    centred = (z - z.mean(axis=0, dtype=np.float64)).astype(np.float64)
    parts = [centred[:, first:last] for first, last in itertools.pairwise(edges) if first < last]
    axes = [np.linalg.eigh(x.T @ x)[1][:, -1] for x in parts]
    # Row by row, so that equal codes stay tied: a matrix product may round them apart.
    return np.stack([(x * axis).sum(axis=1) for x, axis in zip(parts, axes, strict=True)], axis=1)
