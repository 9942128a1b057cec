"""Feature maps enlarged and joined on a GPU with Triton: nearest-neighbour upsampling, concatenation by channels.

PyTorch's own kernels take two to ten times as long as the maps take to be read and written. These work on
channels-last memory, as rows of channels; elsewhere the two functions are PyTorch's operations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diffsiam import runtime

try:
    import triton
    import triton.language as tl
except ImportError:  # not on every platform
    triton = None

_HELD = 8192  # numbers that a program holds at a time
_NARROWEST = 8  # channels that are worth a tile: 16 bytes


def doubled(x: Tensor) -> Tensor:
    """Every pixel of ``x`` (N, C, H, W) four times: (N, C, 2H, 2W)."""
    if runtime.runs_triton(x):
        return _Doubled.apply(x)
    with torch.autocast("cuda", enabled=False):  # which would go on in float32
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def joined(x: Tensor, skip: Tensor) -> Tensor:
    """The channels of ``x`` (N, C, H, W), then those of ``skip`` (N, S, H, W): (N, C + S, H, W)."""
    alike = x.dtype == skip.dtype
    if runtime.runs_triton(x) and alike and _width(x.shape[1], skip.shape[1]) >= _NARROWEST:
        return _Joined.apply(x, skip)
    return torch.cat([x, skip], dim=1)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _double(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return _halve(dy)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor) -> Tensor:
        ctx.channels = x.shape[1]
        return _join(x, skip)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        both = ctx.needs_input_grad[1]  # the skips of a frozen network need none
        dx, dskip = _part(dy, ctx.channels, both)
        return dx, dskip if both else None


# ---------------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("diffsiam::double", mutates_args=())
def _double(x: Tensor) -> Tensor:
    channels, height, width = x.shape[1:]
    y = _empty(x, channels, 2 * height, 2 * width)
    grid, sizes = _tiles(x, channels, 4096)
    _double_kernel[grid](_last(x), y, x.numel() // channels, channels, width, BACK=False, **sizes)
    return y


@torch.library.custom_op("diffsiam::halve", mutates_args=())
def _halve(dy: Tensor) -> Tensor:
    """The sums of four pixels each."""
    channels, height, width = dy.shape[1:]
    dx = _empty(dy, channels, height // 2, width // 2)
    grid, sizes = _tiles(dx, channels, 2048)
    _double_kernel[grid](dx, _last(dy), dx.numel() // channels, channels, width // 2, BACK=True, **sizes)
    return dx


@torch.library.custom_op("diffsiam::join", mutates_args=())
def _join(x: Tensor, skip: Tensor) -> Tensor:
    own, more = x.shape[1], skip.shape[1]
    y = _empty(x, own + more, *x.shape[2:])
    grid, sizes = _tiles(x, own + more, _HELD, _width(own, more))
    _join_kernel[grid](_last(x), _last(skip), y, x.numel() // own, own, more, BACK=False, **sizes)
    return y


@torch.library.custom_op("diffsiam::part", mutates_args=())
def _part(dy: Tensor, own: int, both: bool) -> tuple[Tensor, Tensor]:
    """The first ``own`` channels, and the others where ``both`` are asked for."""
    more = dy.shape[1] - own
    x = _empty(dy, own, *dy.shape[2:])
    skip = _empty(dy, more if both else 0, *dy.shape[2:])
    grid, sizes = _tiles(x, own + more if both else own, _HELD, _width(own, more))
    _join_kernel[grid](x, skip, _last(dy), x.numel() // own, own, more, BACK=True, **sizes)
    return x, skip


@_double.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return _empty(x, x.shape[1], 2 * x.shape[2], 2 * x.shape[3])


@_halve.register_fake
def _(dy):  # type: ignore[no-untyped-def]
    return _empty(dy, dy.shape[1], dy.shape[2] // 2, dy.shape[3] // 2)


@_join.register_fake
def _(x, skip):  # type: ignore[no-untyped-def]
    return _empty(x, x.shape[1] + skip.shape[1], *x.shape[2:])


@_part.register_fake
def _(dy, own, both):  # type: ignore[no-untyped-def]
    return _empty(dy, own, *dy.shape[2:]), _empty(dy, dy.shape[1] - own if both else 0, *dy.shape[2:])


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    shape = len(like), channels, height, width
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _width(own: int, more: int) -> int:
    """Channels of a tile, none of which lies in two maps."""
    return math.gcd(own, more, 64)


def _tiles(x: Tensor, channels: int, held: int, columns: int = 0) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and tiles over the pixels of ``x`` and so many ``channels``."""
    rows = x.numel() // x.shape[1]
    columns = columns or min(64, 1 << (channels - 1).bit_length())
    block = held // columns
    return (-(-rows // block), -(-channels // columns)), {"COLUMNS": columns, "BLOCK": block, "num_warps": 8}


# ------------------------------------------------------------------------------------------------------ kernels
if triton is not None:

    @triton.jit
    def _double_kernel(  # type: ignore[no-untyped-def]
        x, y, rows, channels, width, BACK: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
    ):
        """Each row of x to its four places in y, or their sum back; ``width`` is that of x."""
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = (row[:, None] < rows) & (column[None] < channels)
        at = row[:, None].to(tl.int64) * channels + column[None]
        first = row // width * (4 * width) + row % width * 2
        if BACK:
            total = tl.zeros((BLOCK, COLUMNS), tl.float32)
            for k in tl.static_range(4):
                place = (first + k // 2 * (2 * width) + k % 2).to(tl.int64)
                total += tl.load(y + place[:, None] * channels + column[None], mask=inside, other=0).to(tl.float32)
            tl.store(x + at, total.to(x.dtype.element_ty), mask=inside)
        else:
            value = tl.load(x + at, mask=inside, other=0)
            for k in tl.static_range(4):
                place = (first + k // 2 * (2 * width) + k % 2).to(tl.int64)
                tl.store(y + place[:, None] * channels + column[None], value, mask=inside)

    @triton.jit
    def _join_kernel(  # type: ignore[no-untyped-def]
        x, skip, y, rows, own, more, BACK: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
    ):
        """Rows of x and skip to those of y, or back; a tile belongs to one of the two."""
        begin = tl.program_id(1) * COLUMNS
        column = tl.arange(0, COLUMNS)
        row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = (row[:, None] < rows) & (column[None] < COLUMNS)
        whole = y + row[:, None] * (own + more) + begin + column[None]
        if begin < own:
            part = x + row[:, None] * own + begin + column[None]
        else:
            part = skip + row[:, None] * more + (begin - own) + column[None]
        if BACK:
            tl.store(part, tl.load(whole, mask=inside, other=0), mask=inside)
        else:
            tl.store(whole, tl.load(part, mask=inside, other=0), mask=inside)
