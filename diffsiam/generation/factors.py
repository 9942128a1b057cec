"""Which factors of a grid an image shows, told from its pixels, and which of them a code moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diffsiam.data.images import Images
from diffsiam.generation import measure
from diffsiam.params import PixelClassifier

SCORED = 5000  # images kept apart that a classifier is scored on, at most

Values = NDArray[np.int64]  # of the factors of images, (..., F)


class Carried(NamedTuple):
    """What a code carries: ``factor`` moves most, ``second`` next; shares of samples in 0 to 1, NaN where no sample
    tells. ``others`` is the mean over all factors but the first, of those that some sample tells."""

    factor: int
    second: int
    intended: float
    runner_up: float
    others: float


def train(
    images: Images, values: Values, sizes: Sequence[int], cfg: PixelClassifier, device: torch.device, *, captured: bool
) -> measure.AttributeNet:
    """Fit one network with a softmax for each factor, of ``sizes`` values, to images (N, H, W, 3) and ``values``
    (N, F): the sum of the cross-entropies; otherwise as `measure.train`."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        parts = enumerate(logits.split(list(sizes), dim=1))
        return torch.stack([functional.cross_entropy(part, labels[:, i]) for i, part in parts]).sum()

    return measure.train(images, values, cfg, device, captured=captured, outputs=sum(sizes), loss=loss)


def predict(net: measure.AttributeNet, images: Tensor, sizes: Sequence[int], device: torch.device) -> Values:
    """The likeliest value of each factor, (N, F), of uint8 images (N, H, W, 3)."""
    parts = net.logits(images, device).split(list(sizes), dim=1)
    return torch.stack([part.argmax(dim=1) for part in parts], dim=1).numpy()


def moved(before: Values, after: Values, target: Values) -> NDArray[np.float64]:
    """The share of samples whose factor became the target's, of those in which it was another before.

    Counting these alone, a factor of few values, which agrees by chance more often, has no advantage.

    Args:
        before, target: (M, F).
        after: (..., M, F).
    Returns:
        (..., F) in 0 to 1; NaN where all of them had the target's value before.
    """
    differs = before != target
    with np.errstate(invalid="ignore"):
        return ((after == target) & differs).sum(axis=-2) / differs.sum(axis=0)


def carried(before: Values, after: Values, target: Values) -> Carried:
    """The factor that a code moves most, and the next: chosen on the first half of the samples, measured on the second,
    so that chance is not taken for a difference.

    Args:
        before, after, target: (M, F), F at least 2, as `moved`.
    """
    half = len(before) // 2
    chosen_on, shares = (moved(before[part], after[part], target[part]) for part in np.s_[:half, half:])
    order = np.argsort(-np.nan_to_num(chosen_on, nan=-1), kind="stable")
    first, second = int(order[0]), int(order[1])
    rest = np.delete(shares, first)
    others = float(rest[~np.isnan(rest)].mean()) if not np.isnan(rest).all() else float("nan")
    return Carried(first, second, float(shares[first]), float(shares[second]), others)
