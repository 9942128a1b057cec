r"""Group norm, modulation and SiLU in one kernel, where there is a GPU and Triton: y = silu(a \hat{x} + b).

PyTorch runs these as a norm that leaves channels-last memory (in float32 under autocast), a product, a sum and an
activation, each a pass over the feature map: a third of a U-Net's time on a GPU. `norm_silu` is the one door; elsewhere
it is PyTorch's own operations. The kernels read and write channels-last memory, add up in float32, and have no atomic
additions, so they give the same bits every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffsiam import runtime

try:
    import triton
    import triton.language as tl
except ImportError:  # not on every platform
    triton = None

_PROGRAMS = 264  # that keep the multiprocessors of a large GPU busy


def norm_silu(
    x: Tensor,
    norm: nn.GroupNorm,
    *,
    added: Tensor | None = None,
    modulations: Iterable[Sequence[Tensor]] = (),
    silu: bool = True,
) -> Tensor:
    """silu(.. (1 + scale) GN(x + added) + shift ..): group norm, then each of the modulations, then SiLU.

    Args:
        x: (N, C, H, W).
        added: (N, C), added to every pixel before the norm (Ho et al.'s time embedding).
        modulations: pairs (scale, shift), (N, C) each, the first applied first (PDAE's time, then z).
        silu: False leaves out the activation.
    Returns:
        (N, C, H, W); in the precision of autocast where that is on and x is on a GPU, else in that of the operations.
    """
    if runtime.runs_triton(x) and not torch.compiler.is_compiling():
        a, b = norm.weight[None].float(), norm.bias[None].float()
        for scale, shift in modulations:
            factor = 1 + scale.float()
            a, b = factor * a, factor * b + shift.float()
        shape = x.shape[:2]
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        return _normalized(x, added, a.expand(shape), b.expand(shape), norm.num_groups, norm.eps, silu, dtype)[0]
    hidden = norm(x if added is None else x + added[:, :, None, None])
    for scale, shift in modulations:
        hidden = (1 + scale[:, :, None, None]) * hidden + shift[:, :, None, None]
    return functional.silu(hidden) if silu else hidden


# ---------------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("diffsiam::norm_silu", mutates_args=())
def _normalized(
    x: Tensor, added: Tensor | None, a: Tensor, b: Tensor, groups: int, eps: float, silu: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """y in channels-last memory and ``dtype``, and the mean and 1/std of each image's groups, (N, groups) float32."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, dtype=dtype)
    mean, rstd = (torch.empty(len(x), groups, device=x.device) for _ in range(2))
    given = added if added is not None else mean
    grid, shape = _launch(x, groups, 8192)
    _forward_kernel[grid](
        x, given, a, b, y, mean, rstd, *_strides(given, a, b), eps, ADDED=added is not None, SILU=silu, **shape
    )
    return y, mean, rstd


@torch.library.custom_op("diffsiam::norm_silu_backward", mutates_args=())
def _gradients(
    dy: Tensor, x: Tensor, added: Tensor | None, a: Tensor, b: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, added, a and b."""
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    dx = torch.empty_like(x)
    dadded, da, db = (torch.empty(x.shape[:2], device=x.device) for _ in range(3))
    given = added if added is not None else mean
    grid, shape = _launch(x, mean.shape[1], 4096)
    _backward_kernel[grid](
        dy, x, given, a, b, mean, rstd, dx, dadded, da, db, *_strides(given, a, b),
        ADDED=added is not None, SILU=silu, **shape,
    )  # fmt: skip
    return dx, dadded, da, db


@_normalized.register_fake
def _(x, added, a, b, groups, eps, silu, dtype):  # type: ignore[no-untyped-def]
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    mean = x.new_empty(len(x), groups, dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


@_gradients.register_fake
def _(dy, x, added, a, b, mean, rstd, silu):  # type: ignore[no-untyped-def]
    flat = [x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(3)]
    return torch.empty_like(x, memory_format=torch.channels_last), *flat


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, added, a, b, _, _, ctx.silu, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, added, a, b, mean, rstd)


def _backward(ctx, dy, *_):  # type: ignore[no-untyped-def]
    x, added, a, b, mean, rstd = ctx.saved_tensors
    dx, dadded, da, db = _gradients(dy, x, added, a, b, mean, rstd, ctx.silu)
    return dx, None if added is None else dadded.to(added.dtype), da, db, None, None, None, None


_normalized.register_autograd(_backward, setup_context=_keep)


def _strides(*tensors: Tensor) -> list[int]:
    """Steps from image to image: 0 where all images share a row."""
    return [t.stride(0) for t in tensors]


def _launch(x: Tensor, groups: int, held: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and sizes of the kernels: a program takes all pixels of some whole groups of one image, and holds ``held``
    numbers at a time. There shall be two programs for each multiprocessor, and 32 bytes or more to a pixel."""
    count, channels, height, width = x.shape
    across, most = channels // groups, 1 << (groups - 1).bit_length()
    padded = 1 << (across - 1).bit_length()
    together = max(1, min(most, 64 // padded))
    while together * padded > 16 and together > 1 and count * -(-groups // together) < _PROGRAMS:
        together //= 2
    pixels = max(1, min(held // (together * padded), 1 << (height * width - 1).bit_length()))
    sizes = {
        "PIXELS": height * width, "CHANNELS": channels, "GROUPS": groups, "ACROSS": across, "PADDED": padded,
        "TOGETHER": together, "BLOCK": pixels, "num_warps": 8,
        "FULL": across == padded and groups % together == 0 and height * width % pixels == 0,
    }  # fmt: skip
    return (count, -(-groups // together)), sizes


# ------------------------------------------------------------------------------------------------------ kernels
# A tile is (BLOCK pixels, TOGETHER * PADDED channels): whole groups, each padded to a power of two. Where all tiles are
# FULL nothing is masked, and 16 bytes are read at a time.
if triton is not None:

    @triton.jit
    def _each(v, TOGETHER: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
        """The sum over its group in the place of every channel."""
        total = tl.sum(tl.reshape(v, (TOGETHER, PADDED)), axis=1)
        return tl.reshape(tl.broadcast_to(total[:, None], (TOGETHER, PADDED)), (TOGETHER * PADDED,))

    @triton.jit
    def _loaded(at, inside, FULL: tl.constexpr):  # type: ignore[no-untyped-def]
        return (tl.load(at) if FULL else tl.load(at, mask=inside, other=0)).to(tl.float32)

    @triton.jit
    def _stored(at, value, inside, FULL: tl.constexpr):  # type: ignore[no-untyped-def]
        if FULL:
            tl.store(at, value.to(at.dtype.element_ty))
        else:
            tl.store(at, value.to(at.dtype.element_ty), mask=inside)

    @triton.jit
    def _channels(GROUPS: tl.constexpr, ACROSS: tl.constexpr, PADDED: tl.constexpr, TOGETHER: tl.constexpr):  # type: ignore[no-untyped-def]
        """Group and channel of each column of the tile, and whether there is such a channel."""
        column = tl.arange(0, TOGETHER * PADDED)
        first = tl.program_id(1) * TOGETHER
        group = first + column // PADDED
        inner = column % PADDED
        channel = first * ACROSS + column if ACROSS == PADDED else group * ACROSS + inner
        return group, channel, (group < GROUPS) & (inner < ACROSS), inner == 0

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        x, added, a, b, y, mean, rstd, added_stride, a_stride, b_stride, eps, ADDED: tl.constexpr, SILU: tl.constexpr,
        PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ACROSS: tl.constexpr,
        PADDED: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
    ):  # fmt: skip
        n = tl.program_id(0).to(tl.int64)
        group, channel, there, head = _channels(GROUPS, ACROSS, PADDED, TOGETHER)
        plus = tl.zeros((TOGETHER * PADDED,), tl.float32)
        if ADDED:
            plus = tl.load(added + n * added_stride + channel, mask=there, other=0).to(tl.float32)
        image = n * PIXELS * CHANNELS
        # Sums are of distances from the group's mean in the first pixel: none is small beside its parts.
        first = tl.load(x + image + channel, mask=there, other=0).to(tl.float32) + plus
        shift = _each(tl.where(there, first, 0), TOGETHER, PADDED) / ACROSS
        total = tl.zeros((TOGETHER * PADDED,), tl.float32)
        square = tl.zeros((TOGETHER * PADDED,), tl.float32)
        for begin in range(0, PIXELS, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            inside = there[None] & (pixel[:, None] < PIXELS)
            value = _loaded(x + image + pixel[:, None] * CHANNELS + channel[None], inside, FULL)
            distance = value + (plus - shift)[None]
            if not FULL:
                distance = tl.where(inside, distance, 0)
            total += tl.sum(distance, axis=0)
            square += tl.sum(distance * distance, axis=0)
        offset = _each(total, TOGETHER, PADDED) / (PIXELS * ACROSS)
        spread = _each(square, TOGETHER, PADDED) / (PIXELS * ACROSS) - offset * offset
        centre, inverse = shift + offset, 1 / tl.sqrt(tl.maximum(spread, 0) + eps)
        tl.store(mean + n * GROUPS + group, centre, mask=there & head)
        tl.store(rstd + n * GROUPS + group, inverse, mask=there & head)
        factor = tl.load(a + n * a_stride + channel, mask=there, other=0).to(tl.float32) * inverse
        bias = tl.load(b + n * b_stride + channel, mask=there, other=0).to(tl.float32) + (plus - centre) * factor
        for begin in range(0, PIXELS, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            inside = there[None] & (pixel[:, None] < PIXELS)
            at = image + pixel[:, None] * CHANNELS + channel[None]
            v = _loaded(x + at, inside, FULL) * factor[None] + bias[None]
            if SILU:
                v = v * tl.sigmoid(v)
            _stored(y + at, v, inside, FULL)

    @triton.jit
    def _unactivated(dy, v, SILU: tl.constexpr):  # type: ignore[no-untyped-def]
        """The gradient of v, where y = silu(v) or v."""
        if SILU:
            s = tl.sigmoid(v)
            dy = dy * s * (1 + v * (1 - s))
        return dy

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        dy, x, added, a, b, mean, rstd, dx, dadded, da, db, added_stride, a_stride, b_stride, ADDED: tl.constexpr,
        SILU: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr,
        ACROSS: tl.constexpr, PADDED: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
    ):  # fmt: skip
        n = tl.program_id(0).to(tl.int64)
        group, channel, there, _ = _channels(GROUPS, ACROSS, PADDED, TOGETHER)
        inverse = tl.load(rstd + n * GROUPS + group, mask=there, other=0)
        centre = tl.load(mean + n * GROUPS + group, mask=there, other=0)
        if ADDED:
            centre = centre - tl.load(added + n * added_stride + channel, mask=there, other=0).to(tl.float32)
        factor = tl.load(a + n * a_stride + channel, mask=there, other=0).to(tl.float32)
        bias = tl.load(b + n * b_stride + channel, mask=there, other=0).to(tl.float32)
        image = n * PIXELS * CHANNELS
        along = tl.zeros((TOGETHER * PADDED,), tl.float32)  # sum of dv * xhat, with v = a xhat + b
        plain = tl.zeros((TOGETHER * PADDED,), tl.float32)  # sum of dv
        for begin in range(0, PIXELS, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            inside = there[None] & (pixel[:, None] < PIXELS)
            at = image + pixel[:, None] * CHANNELS + channel[None]
            xhat = (_loaded(x + at, inside, FULL) - centre[None]) * inverse[None]
            dv = _unactivated(_loaded(dy + at, inside, FULL), factor[None] * xhat + bias[None], SILU)
            plain += tl.sum(dv, axis=0)
            along += tl.sum(dv * xhat, axis=0)
        where = n * CHANNELS + channel
        tl.store(da + where, along, mask=there)
        tl.store(db + where, plain, mask=there)
        even = _each(factor * plain, TOGETHER, PADDED) / (PIXELS * ACROSS)
        slope = _each(factor * along, TOGETHER, PADDED) / (PIXELS * ACROSS)
        moved = tl.zeros((TOGETHER * PADDED,), tl.float32)
        for begin in range(0, PIXELS, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            inside = there[None] & (pixel[:, None] < PIXELS)
            at = image + pixel[:, None] * CHANNELS + channel[None]
            xhat = (_loaded(x + at, inside, FULL) - centre[None]) * inverse[None]
            dv = _unactivated(_loaded(dy + at, inside, FULL), factor[None] * xhat + bias[None], SILU)
            d = inverse[None] * (factor[None] * dv - even[None] - xhat * slope[None])
            if ADDED:
                moved += tl.sum(d if FULL else tl.where(inside, d, 0), axis=0)
            _stored(dx + at, d, inside, FULL)
        if ADDED:
            tl.store(dadded + where, moved, mask=there)
