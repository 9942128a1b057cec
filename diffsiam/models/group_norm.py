r"""Group norm, modulation and SiLU in one kernel, where there is a GPU and Triton: y = silu(a \hat{x} + b).

PyTorch runs these as a norm that leaves channels-last memory (in float32 under autocast), a product, a sum and an
activation, each a pass over the feature map: a third of a U-Net's time on a GPU. `norm_silu` is the one door; elsewhere
it is PyTorch's own operations. The kernels read and write channels-last memory, add up in float32, and have no atomic
additions, so they give the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    bias: Tensor | None = None,
    added: Tensor | None = None,
    modulations: Sequence[Tensor] = (),
    silu: bool = True,
) -> Tensor:
    """silu(.. (1 + scale) GN(x + bias + added) + shift ..): group norm, then each of the modulations, then SiLU.

    Args:
        x: (N, C, H, W).
        bias: (C,), of the convolution before, where that left it out.
        added: (N, C), added to every pixel before the norm (Ho et al.'s time embedding).
        modulations: up to two of (N, 2C), scale then shift, the first applied first (PDAE's time, then z).
        silu: False leaves out the activation.
    Returns:
        (N, C, H, W); in the precision of autocast where that is on and x is on a GPU, else in that of the operations.
    """
    if runtime.runs_triton(x):
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        first, second = [*modulations, None, None][:2]
        given = x, norm.weight, norm.bias, bias, added, first, second
        return _normalized(*given, norm.num_groups, norm.eps, silu, dtype)[0]
    for rows in (bias, added):
        x = x if rows is None else x + rows.view(-1, x.shape[1], 1, 1)
    hidden = norm(x)
    for scale, shift in (pair[:, :, None, None].chunk(2, dim=1) for pair in modulations):
        hidden = (1 + scale) * hidden + shift
    return functional.silu(hidden) if silu else hidden


# ---------------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("diffsiam::norm_silu", mutates_args=())
def _normalized(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """y in channels-last memory and ``dtype``, and the mean and 1/std of each image's groups, (N, groups) float32;
    ``weight`` and ``offset`` are the norm's own."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, dtype=dtype)
    mean, rstd = (torch.empty(len(x), groups, device=x.device) for _ in range(2))
    grid, shape = _launch(x, groups, 8192)
    rows, strides, flags = _told(weight, bias, added, first, second)
    _forward_kernel[grid](x, weight, offset, *rows, y, mean, rstd, *strides, eps, SILU=silu, **flags, **shape)
    return y, mean, rstd


@torch.library.custom_op("diffsiam::norm_silu_backward", mutates_args=())
def _gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, first, second, and by image those of weight, offset and what was added before the norm,
    (3, N, C) float32."""
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    dx, sums = torch.empty_like(x), torch.empty(3, *x.shape[:2], device=x.device)
    dfirst, dsecond = (_row_like(pair, x) for pair in (first, second))
    grid, shape = _launch(x, mean.shape[1], 4096)
    rows, strides, flags = _told(weight, bias, added, first, second)
    _backward_kernel[grid](
        dy, x, weight, offset, *rows, mean, rstd, dx, dfirst, dsecond, sums, *strides, len(x),
        SILU=silu, **flags, **shape,
    )  # fmt: skip
    return dx, dfirst, dsecond, sums


@_normalized.register_fake
def _(x, weight, offset, bias, added, first, second, groups, eps, silu, dtype):  # type: ignore[no-untyped-def]
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    mean = x.new_empty(len(x), groups, dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


@_gradients.register_fake
def _(dy, x, weight, offset, bias, added, first, second, mean, rstd, silu):  # type: ignore[no-untyped-def]
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, _row_like(first, x), _row_like(second, x), x.new_empty(3, *x.shape[:2], dtype=torch.float32)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *given, _, _, ctx.silu, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(*given, mean, rstd)


def _backward(ctx, dy, *_):  # type: ignore[no-untyped-def]
    _, weight, offset, bias, added, first, second, *_ = ctx.saved_tensors
    dx, dfirst, dsecond, sums = _gradients(dy, *ctx.saved_tensors, ctx.silu)
    totals = sums.sum(dim=1)
    return (
        dx,
        totals[0].to(weight.dtype),
        totals[1].to(offset.dtype),
        None if bias is None else totals[2].to(bias.dtype),
        None if added is None else sums[2].to(added.dtype),
        None if first is None else dfirst,
        None if second is None else dsecond,
        *[None] * 4,
    )


_normalized.register_autograd(_backward, setup_context=_keep)


def _row_like(pair: Tensor | None, x: Tensor) -> Tensor:
    """A place for the gradient of ``pair``; an empty one where there is none."""
    return x.new_empty(0) if pair is None else torch.empty(pair.shape, dtype=pair.dtype, device=pair.device)


def _told(
    weight: Tensor, bias: Tensor | None, added: Tensor | None, first: Tensor | None, second: Tensor | None
) -> tuple[list[Tensor], list[int], dict[str, int]]:
    """What the kernels are given of these: pointers, steps from image to image, and which of them are there."""
    rows = [weight if row is None else row for row in (bias, added, first, second)]
    strides = [0 if row is None else row.stride(0) for row in (added, first, second)]
    pairs = (first is not None) + (second is not None)
    return rows, strides, {"BIAS": bias is not None, "ADDED": added is not None, "PAIRS": pairs}


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
    def _before(bias, added, added_stride, n, channel, there, BIAS: tl.constexpr, ADDED: tl.constexpr):  # type: ignore[no-untyped-def]
        """What is added to each channel before the norm."""
        plus = tl.zeros(channel.shape, tl.float32)
        if BIAS:
            plus += tl.load(bias + channel, mask=there, other=0).to(tl.float32)
        if ADDED:
            plus += tl.load(added + n * added_stride + channel, mask=there, other=0).to(tl.float32)
        return plus

    @triton.jit
    def _modulated(a, b, pair, at, channel, there, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
        """(1 + scale) of the channels, and a and b after the modulation."""
        scale = 1 + tl.load(pair + at + channel, mask=there, other=0).to(tl.float32)
        shift = tl.load(pair + at + CHANNELS + channel, mask=there, other=0).to(tl.float32)
        return scale, scale * a, scale * b + shift

    @triton.jit
    def _forward_kernel(  # type: ignore[no-untyped-def]
        x, weight, offset, bias, added, first, second, y, mean, rstd, added_stride, first_stride, second_stride, eps,
        SILU: tl.constexpr, BIAS: tl.constexpr, ADDED: tl.constexpr, PAIRS: tl.constexpr,
        PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ACROSS: tl.constexpr,
        PADDED: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
    ):  # fmt: skip
        n = tl.program_id(0).to(tl.int64)
        group, channel, there, head = _channels(GROUPS, ACROSS, PADDED, TOGETHER)
        plus = _before(bias, added, added_stride, n, channel, there, BIAS, ADDED)
        image = n * PIXELS * CHANNELS
        # Sums are of distances from the group's mean in the first pixel: none is small beside its parts.
        begun = tl.load(x + image + channel, mask=there, other=0).to(tl.float32) + plus
        shift = _each(tl.where(there, begun, 0), TOGETHER, PADDED) / ACROSS
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
        moved = _each(total, TOGETHER, PADDED) / (PIXELS * ACROSS)
        spread = _each(square, TOGETHER, PADDED) / (PIXELS * ACROSS) - moved * moved
        centre, inverse = shift + moved, 1 / tl.sqrt(tl.maximum(spread, 0) + eps)
        tl.store(mean + n * GROUPS + group, centre, mask=there & head)
        tl.store(rstd + n * GROUPS + group, inverse, mask=there & head)
        a = tl.load(weight + channel, mask=there, other=0).to(tl.float32)
        b = tl.load(offset + channel, mask=there, other=0).to(tl.float32)
        if PAIRS > 0:
            _, a, b = _modulated(a, b, first, n * first_stride, channel, there, CHANNELS)
        if PAIRS > 1:
            _, a, b = _modulated(a, b, second, n * second_stride, channel, there, CHANNELS)
        factor = a * inverse
        b += (plus - centre) * factor
        for begin in range(0, PIXELS, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            inside = there[None] & (pixel[:, None] < PIXELS)
            at = image + pixel[:, None] * CHANNELS + channel[None]
            v = _loaded(x + at, inside, FULL) * factor[None] + b[None]
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
    def _unmodulated(da, db, scale, a, b, dpair, at, channel, there, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
        """Leaves the gradient of a modulation of ``a`` and ``b``; returns theirs."""
        kind = dpair.dtype.element_ty
        tl.store(dpair + at + channel, (da * a + db * b).to(kind), mask=there)
        tl.store(dpair + at + CHANNELS + channel, db.to(kind), mask=there)
        return scale * da, scale * db

    @triton.jit
    def _backward_kernel(  # type: ignore[no-untyped-def]
        dy, x, weight, offset, bias, added, first, second, mean, rstd, dx, dfirst, dsecond, sums,
        added_stride, first_stride, second_stride, images,
        SILU: tl.constexpr, BIAS: tl.constexpr, ADDED: tl.constexpr, PAIRS: tl.constexpr,
        PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ACROSS: tl.constexpr,
        PADDED: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
    ):  # fmt: skip
        n = tl.program_id(0).to(tl.int64)
        group, channel, there, _ = _channels(GROUPS, ACROSS, PADDED, TOGETHER)
        inverse = tl.load(rstd + n * GROUPS + group, mask=there, other=0)
        centre = tl.load(mean + n * GROUPS + group, mask=there, other=0)
        centre -= _before(bias, added, added_stride, n, channel, there, BIAS, ADDED)
        a0 = tl.load(weight + channel, mask=there, other=0).to(tl.float32)
        b0 = tl.load(offset + channel, mask=there, other=0).to(tl.float32)
        a1, b1 = a0, b0
        if PAIRS > 0:
            scale1, a1, b1 = _modulated(a0, b0, first, n * first_stride, channel, there, CHANNELS)
        a, b = a1, b1
        if PAIRS > 1:
            scale2, a, b = _modulated(a1, b1, second, n * second_stride, channel, there, CHANNELS)
        image = n * PIXELS * CHANNELS
        along = tl.zeros((TOGETHER * PADDED,), tl.float32)  # sum of dv * xhat, with v = a xhat + b
        plain = tl.zeros((TOGETHER * PADDED,), tl.float32)  # sum of dv
        for begin in range(0, PIXELS, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            inside = there[None] & (pixel[:, None] < PIXELS)
            at = image + pixel[:, None] * CHANNELS + channel[None]
            xhat = (_loaded(x + at, inside, FULL) - centre[None]) * inverse[None]
            dv = _unactivated(_loaded(dy + at, inside, FULL), a[None] * xhat + b[None], SILU)
            plain += tl.sum(dv, axis=0)
            along += tl.sum(dv * xhat, axis=0)
        even = _each(a * plain, TOGETHER, PADDED) / (PIXELS * ACROSS)
        slope = _each(a * along, TOGETHER, PADDED) / (PIXELS * ACROSS)
        moved = tl.zeros((TOGETHER * PADDED,), tl.float32)
        for begin in range(0, PIXELS, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            inside = there[None] & (pixel[:, None] < PIXELS)
            at = image + pixel[:, None] * CHANNELS + channel[None]
            xhat = (_loaded(x + at, inside, FULL) - centre[None]) * inverse[None]
            dv = _unactivated(_loaded(dy + at, inside, FULL), a[None] * xhat + b[None], SILU)
            d = inverse[None] * (a[None] * dv - even[None] - xhat * slope[None])
            if BIAS or ADDED:
                moved += tl.sum(d if FULL else tl.where(inside, d, 0), axis=0)
            _stored(dx + at, d, inside, FULL)
        pair = n * 2 * CHANNELS
        if PAIRS > 1:
            along, plain = _unmodulated(along, plain, scale2, a1, b1, dsecond, pair, channel, there, CHANNELS)
        if PAIRS > 0:
            along, plain = _unmodulated(along, plain, scale1, a0, b0, dfirst, pair, channel, there, CHANNELS)
        where = n * CHANNELS + channel
        tl.store(sums + where, along, mask=there)
        tl.store(sums + images * CHANNELS + where, plain, mask=there)
        tl.store(sums + 2 * images * CHANNELS + where, moved, mask=there)
