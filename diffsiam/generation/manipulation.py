"""Attribute manipulation (Algorithm 3): z pushed along the normal of an attribute classifier's boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsiam.evaluation.probmask import Classifier
from diffsiam.generation.model import Guided


def manipulate(model: Guided, original: tuple[Tensor, Tensor], classifier: Classifier, scales: Tensor) -> Tensor:
    """Algorithm 3 at every scale.

    Args:
        original: (z, x_T) of N images, from the latents of `Guided.whole`, which samples here as well.
        scales: (S,), the length s of the push in standard deviations; negative pushes away from the attribute, 0 is
            the reconstruction.
    Returns:
        Images (N, S, 3, side, side).
    """
    z, x_T = original
    edited = z[:, None] + scales.to(z)[:, None] * direction(classifier)
    start = x_T[:, None].expand(-1, len(scales), *x_T.shape[1:])
    images = model.whole.sample(start.reshape(-1, *x_T.shape[1:]), edited.flatten(0, 1))
    return images.reshape(len(z), len(scales), *x_T.shape[1:])


def direction(classifier: Classifier) -> Tensor:
    """sigma * w / |w|, (d,): what a scale of 1 adds to z."""
    weight = torch.from_numpy(classifier.weight)
    return torch.from_numpy(classifier.std) * weight / torch.linalg.vector_norm(weight)
