"""DisDiff's disentangling loss (Eq. 9 to 13), as pure functions of tensors.

B images, N codes of d_c numbers, c the code that was drawn for an image. Where the paper and its authors' code differ,
docs/method.md says which of the two this is, and why.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional


class Distances(NamedTuple):
    """What the two cross-entropies are of, (B, N) each: by how much each code of the guided reconstruction x0_hat^c is
    farther from the unguided one's (`invariant`), and nearer to the image's own (`variant`)."""

    invariant: Tensor
    variant: Tensor


def conditioned_x0(x0_hat: Tensor, gain: Tensor, field: Tensor) -> Tensor:
    r"""x0_hat^c = x0_hat + (1 - abar) / sqrt(abar) g^c: the reconstruction from the noise that is shifted by
    -sqrt(1 - abar) g^c (Eq. 6, 7). Images (B, 3, H, W), ``gain`` (B, 1, 1, 1)."""
    return x0_hat + gain * field


def frozen(encoder: nn.Module, x: Tensor, *, attached: bool = False) -> Tensor:
    """E'(x): the encoder as it is now, in evaluation mode. Its weights get no gradient, unless ``attached``, ``x``
    does; its statistics stay as they are."""
    state = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    if not attached:
        state = {name: value.detach() for name, value in state.items()}
    training = encoder.training
    encoder.eval()
    try:
        result: Tensor = functional_call(encoder, state, (x,))
    finally:
        encoder.train(training)
    return result


def distances(z: Tensor, unguided: Tensor, guided: Tensor) -> Distances:
    """Distances of codes, (B, N, d_c) each: of the image's ``z``, of x0_hat's and of x0_hat^c's.

    The invariant distance is that of the authors' code, |E^k(x0_hat^c) - E^k(x0_hat)|; Eq. 9 prints x0 in place of
    x0_hat, which would push the drawn code away from the image's own and fight the other loss.
    """
    moved = torch.linalg.vector_norm(guided - unguided, dim=2)
    before = torch.linalg.vector_norm(unguided - z, dim=2)
    after = torch.linalg.vector_norm(guided - z, dim=2)
    return Distances(moved, before - after)


def cross_entropies(of: Distances, codes: Tensor) -> tuple[Tensor, Tensor]:
    """L_in and L_va of each image, (B,): of N logits without a temperature, against the drawn ``codes`` (B,)."""
    losses = (functional.cross_entropy(logits, codes, reduction="none") for logits in of)
    return next(losses), next(losses)


@torch.no_grad()
def difference_weight(x0_hat: Tensor, guided: Tensor, variance: float) -> Tensor:
    """Mean square of x0_hat - x0_hat^c over an image in units of the images' ``variance`` (Eq. 13), (B,)."""
    return (x0_hat - guided).square().mean(dim=(1, 2, 3)) / variance
