"""Counterfactuals (Algorithm 2): some segments of one image's z drawn towards another's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsiam.errors import UserError
from diffsiam.generation.model import Guided

Range = tuple[int, int]

# Whether x_T is exchanged with the segments, by `generation.exchange_noise`.
EXCHANGES: dict[bool | str, tuple[bool, ...]] = {True: (True,), False: (False,), "both": (True, False)}


def counterfactual(
    model: Guided,
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    ranges: Sequence[Range],
    scales: Tensor,
    *,
    exchange_noise: bool = True,
) -> Tensor:
    """Algorithm 2 on every range of segments, at every scale.

    Args:
        model: the trained networks.
        source: (z, x_T) of N images, from `Guided.latents`.
        target: those of the N images that they are drawn towards.
        ranges: R half-open ranges of segments, counted from 0: (0, 8) is z_1 .. z_8.
        scales: (S,) in [0, 1]; 0 is the source's reconstruction.
        exchange_noise: draw x_T towards the target's as well, as Algorithm 2 does; else it stays the source's own.
    Returns:
        Images (N, R, S, 3, side, side).
    """
    (z, x_T), (z_other, x_other) = source, target
    n, r, s = len(z), len(ranges), len(scales)
    edited = torch.stack([lerp(z, z_other, model.edges, span, scales) for span in ranges], dim=1)
    start = slerp(x_T, x_other if exchange_noise else x_T, scales)[:, None].expand(n, r, s, *x_T.shape[1:])
    images = model.sample(start.reshape(-1, *x_T.shape[1:]), edited.reshape(n * r * s, -1))
    return images.reshape(n, r, s, *x_T.shape[1:])


def lerp(z: Tensor, other: Tensor, edges: Tensor, span: Range, scales: Tensor) -> Tensor:
    """Interpolate linearly from z to ``other``, (N, d), on the segments of ``span`` only: (N, S, d)."""
    position = torch.arange(z.shape[1])
    inside = (position >= edges[span[0]]) & (position < edges[span[1]])
    moved = torch.lerp(z[:, None], other[:, None], scales[:, None].to(z))
    return torch.where(inside, moved, z[:, None])


def slerp(x: Tensor, other: Tensor, scales: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of each image of x towards ``other``, (N, C, H, W): (N, S, C, H, W).

    Parallel images, which span no arc, are interpolated linearly.
    """
    s = scales.to(torch.float64)
    a, b = x.flatten(1).to(torch.float64), other.flatten(1).to(torch.float64)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle = cosine.acos()[:, None]
    arc = angle.sin()
    flat = arc < 1e-6
    weight = torch.where(flat, 1 - s, ((1 - s) * angle).sin() / arc)
    weight_other = torch.where(flat, s, (s * angle).sin() / arc)
    mixed = weight[..., None] * a[:, None] + weight_other[..., None] * b[:, None]
    return mixed.reshape(len(x), len(s), *x.shape[1:]).to(x.dtype)


def parse_range(text: str, segments: int) -> Range:
    """``A-B`` as a half-open range of segments.

    Raises:
        UserError: not two whole numbers with 0 <= A <= B <= ``segments``.
    """
    first, _, last = text.partition("-")
    if first.isdecimal() and last.isdecimal():
        return check_range((int(first), int(last)), segments)
    raise _bad_range(text, segments)


def check_range(span: Range, segments: int) -> Range:
    """``span`` itself; a `UserError` where it does not lie within the segments."""
    if not 0 <= span[0] <= span[1] <= segments:
        raise _bad_range(f"{span[0]}-{span[1]}", segments)
    return span


def _bad_range(text: str, segments: int) -> UserError:
    return UserError(
        f"segments {text!r}: no range of this model's {segments} segments. Write A-B with 0 <= A <= B <= {segments}, "
        f"half-open: 0-{min(8, segments)} is z_1 .. z_{min(8, segments)}, 0-{segments} all of z."
    )
