"""The colour half of a view: jitter in an order of each image's own, then grey.

Images are float (N, 3, H, W) in [0, 1]. On a GPU with Triton one kernel does it all, an image to a program; on other
accelerators each of four rounds computes all four operations and keeps the one whose turn it is; on a CPU, where that
would be four times the work, each operation takes the images whose turn it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffsiam import runtime

try:
    import triton
    import triton.language as tl
except ImportError:  # not on every platform
    triton = None

_LUMA = (0.2989, 0.587, 0.114)


def jitter(x: Tensor, factors: Tensor, order: Tensor, grey: Tensor) -> Tensor:
    """torchvision's ColorJitter with given factors and order, then RandomGrayscale.

    Args:
        factors: of brightness, contrast and saturation, and the hue's shift in turns, (N, 4).
        order: of these four operations, int64 (N, 4), each row a permutation of 0..3.
        grey: whether an image ends grey, bool (N,).
    """
    if x.device.type == "cpu":
        x = _by_groups(x, factors, order)
    elif runtime.runs_triton(x):
        return _kernel(x, factors, order, grey)
    else:
        x = _by_rounds(x, factors, order)
    return torch.where(grey.view(-1, 1, 1, 1), _grey(x), x)


def _by_groups(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    for turn in range(len(_OPERATIONS)):
        before, x = x, torch.empty_like(x)
        for number, function in enumerate(_OPERATIONS):
            chosen = (order[:, turn] == number).nonzero().flatten()
            x[chosen] = function(before[chosen], factors[chosen, number].view(-1, 1, 1, 1))
    return x


def _by_rounds(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    for turn in range(len(_OPERATIONS)):
        operation, before = order[:, turn].view(-1, 1, 1, 1), x
        for number, function in enumerate(_OPERATIONS):
            x = torch.where(operation == number, function(before, factors[:, number].view(-1, 1, 1, 1)), x)
    return x


def _grey(x: Tensor) -> Tensor:
    return (_LUMA[0] * x[:, :1] + _LUMA[1] * x[:, 1:2] + _LUMA[2] * x[:, 2:]).expand_as(x)


def _blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; ``factor`` (N, 1, 1, 1), 1 changes nothing."""
    return (factor * x).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey."""
    return _blend(x, _grey(x)[:, :1].mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(x, _grey(x), factor)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` turns, (N, 1, 1, 1) in [-0.5, 0.5], in HSV space."""
    r, g, b = x.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    span = value - torch.minimum(torch.minimum(r, g), b)
    inverse = 1 / span.clamp_min(1e-12)  # where the span is zero, so is what it divides
    sector = torch.where(
        r == value, (g - b) * inverse, torch.where(g == value, 2 + (b - r) * inverse, 4 + (r - g) * inverse)
    )
    sector += 6 * shift[:, 0]
    # Each channel is the value less the span times a trapezoid of its distance from the hue (Smith 1978).
    channels = []
    for offset in (5, 3, 1):
        k = sector + offset
        k -= (k * (1 / 6)).floor_().mul_(6)
        channels.append(value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(span))
    return torch.stack(channels, dim=1)


_OPERATIONS = (brightness, contrast, saturation, hue)


# ------------------------------------------------------------------------------------------------------- kernel
@torch.library.custom_op("diffsiam::jitter", mutates_args=())
def _kernel(x: Tensor, factors: Tensor, order: Tensor, grey: Tensor) -> Tensor:
    x, factors, order = x.contiguous(), factors.contiguous(), order.contiguous()
    out, pixels = torch.empty_like(x), x.shape[2] * x.shape[3]
    block = 1 << (pixels - 1).bit_length()
    # An image stays in registers: at most 32 of its pixels to a thread.
    _jitter_kernel[(len(x),)](x, factors, order, grey, out, pixels, block, num_warps=max(4, min(32, block // 1024)))
    return out


@_kernel.register_fake
def _(x, factors, order, grey):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


if triton is not None:

    @triton.jit
    def _luma(r, g, b):  # type: ignore[no-untyped-def]
        return 0.2989 * r + 0.587 * g + 0.114 * b

    @triton.jit
    def _clamp(v):  # type: ignore[no-untyped-def]
        return tl.minimum(tl.maximum(v, 0.0), 1.0)

    @triton.jit
    def _turned(value, span, sector, offset):  # type: ignore[no-untyped-def]
        k = sector + offset
        k = k - tl.floor(k * (1 / 6)) * 6
        return value - tl.minimum(tl.maximum(tl.minimum(k, 4 - k), 0.0), 1.0) * span

    @triton.jit
    def _jitter_kernel(x, factors, order, grey, out, PIXELS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        n = tl.program_id(0).to(tl.int64)
        pixel = tl.arange(0, BLOCK)
        inside = pixel < PIXELS
        at = n * 3 * PIXELS + pixel
        r = tl.load(x + at, mask=inside, other=0)
        g = tl.load(x + at + PIXELS, mask=inside, other=0)
        b = tl.load(x + at + 2 * PIXELS, mask=inside, other=0)
        for turn in range(4):
            operation = tl.load(order + n * 4 + turn)
            factor = tl.load(factors + n * 4 + operation)
            if operation == 3:  # hue
                value = tl.maximum(tl.maximum(r, g), b)
                span = value - tl.minimum(tl.minimum(r, g), b)
                inverse = 1 / tl.maximum(span, 1e-12)
                sector = tl.where(g == value, 2 + (b - r) * inverse, 4 + (r - g) * inverse)
                sector = tl.where(r == value, (g - b) * inverse, sector) + 6 * factor
                r = _turned(value, span, sector, 5)
                g = _turned(value, span, sector, 3)
                b = _turned(value, span, sector, 1)
            else:  # a blend with black, with the mean grey, or with the grey image
                luma = tl.where(inside, _luma(r, g, b), 0)
                other = luma * 0
                if operation == 1:
                    other += tl.sum(luma, axis=0) / PIXELS
                if operation == 2:
                    other += luma
                other = (1 - factor) * other
                r = _clamp(factor * r + other)
                g = _clamp(factor * g + other)
                b = _clamp(factor * b + other)
        if tl.load(grey + n):
            luma = _luma(r, g, b)
            r = luma
            g = luma
            b = luma
        tl.store(out + at, r, mask=inside)
        tl.store(out + at + PIXELS, g, mask=inside)
        tl.store(out + at + 2 * PIXELS, b, mask=inside)
