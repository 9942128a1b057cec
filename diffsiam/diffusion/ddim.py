r"""Deterministic DDIM (Eq. 3.5, whose \alpha is \bar\alpha here): free functions of a model, images and a sub-sequence.

A model is a callable ``model(x_t, t)`` that predicts the noise in x_t: images (N, 3, H, W) and int64 paper steps (N,)
in 1..T to (N, 3, H, W). Level 0 is the image itself; there the model is asked at step 1, the nearest that it knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffsiam import runtime
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.models.unet import timesteps_like

Model = Callable[[Tensor, Tensor], Tensor]


class Memory(NamedTuple):
    """x0_hat of a step, and the step's width in log-SNR."""

    x0: Tensor
    width: float


def levels(steps: int) -> list[int]:
    """The sub-sequence 0 = t_1 < .. < t_M = T of Algorithms 2 and 3, evenly spaced, of ``steps`` in 1..T steps."""
    return [round(i * TIMESTEPS / steps) for i in range(steps + 1)]


def step(
    model: Model, x: Tensor, t: int, to: int, table: Schedule, before: Memory | None = None, *, clip: bool = False
) -> tuple[Tensor, Memory | None]:
    """One step of Eq. 3.5 from level ``t`` to level ``to``, down (sampling) or up (inversion).

    Args:
        x: images (N, 3, H, W) at level ``t``.
        before: what the step before returned, for DPM-Solver++ 2M (Lu et al. 2022): x0_hat is then extrapolated in
            log-SNR from that level and this. None is DDIM, of first order.
        clip: clip x0_hat to [-1, 1]; the noise is then what fits the clipped image.
    Returns:
        The images at level ``to``, and what the next step takes as ``before``; None at level 0, where the log-SNR is
        infinite.
    """
    level = timesteps_like(t, x)
    noise = model(x, level.clamp_min(1))
    if t == 0:
        return table.q_sample(x, timesteps_like(to, x), noise), None
    x0 = table.x0_from_noise(x, level, noise)
    if clip:
        x0 = x0.clamp(-1, 1)
    if to == 0:
        return x0, None
    width = table.half_log_snr(to) - table.half_log_snr(t)
    estimate = x0 if before is None else x0 + (x0 - before.x0) * (width / (2 * before.width))
    noise = table.noise_from_x0(x, level, estimate)
    return table.q_sample(estimate, timesteps_like(to, x), noise), Memory(x0, width)


@torch.no_grad()
def integrate(
    model: Model, x: Tensor, path: Sequence[int], table: Schedule, *, clip: bool = False, solver: str = "ddim"
) -> Tensor:
    """Take images along the levels of ``path``, up or down, one model evaluation per step, by ``ddim`` or ``dpmpp``."""
    before = None
    for t, to in itertools.pairwise(path):
        x, memory = step(model, x, t, to, table, before, clip=clip)
        before = memory if solver == "dpmpp" else None
    return x


def sample(
    model: Model, x_T: Tensor, steps: int, table: Schedule, *, clip: bool = False, solver: str = "ddim"
) -> Tensor:
    """From noise x_T (N, 3, H, W) to images, in ``steps`` model evaluations."""
    return integrate(model, x_T, levels(steps)[::-1], table, clip=clip, solver=solver)


def invert(
    model: Model, x_0: Tensor, steps: int, table: Schedule, *, clip: bool = False, solver: str = "ddim"
) -> Tensor:
    """From images in [-1, 1] to the noise x_T that `sample` leads back to them, the closer the more ``steps``."""
    return integrate(model, x_0, levels(steps), table, clip=clip, solver=solver)


def noise_like(x: Tensor, seed: int, purpose: str, items: Sequence[int]) -> Tensor:
    """Gaussian noise as ``x`` (N, 3, H, W), of one generator per image: neither batch nor device changes it."""
    draws = [torch.randn(x.shape[1:], generator=runtime.generator(seed, purpose, item)) for item in items]
    return torch.stack(draws).to(x)
