"""Biases on a GPU with Triton: one kernel adds them, with the shortcut where a residual block ends (y = hidden +
shortcut + bias), and two take their gradient.

PyTorch adds a convolution's bias in a pass of its own and sums its gradient slowly; where two convolutions end in one
sum, one bias does for both. Elsewhere layers add their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

try:
    import triton
    import triton.language as tl
except ImportError:  # not on every platform
    triton = None

_PROGRAMS = 264  # that keep the multiprocessors of a large GPU busy
_HELD = 4096  # numbers that a program holds at a time


def add(hidden: Tensor, shortcut: Tensor | None, bias: Tensor) -> Tensor:
    """hidden + shortcut + bias, (N, C, H, W) twice and (C,), on a GPU with Triton; in the precision of ``hidden``."""
    return _Add.apply(hidden, shortcut, bias)


def linear(rows: Tensor, layer: nn.Linear) -> Tensor:
    """The ``layer`` on ``rows`` (..., C_in), on a GPU with Triton: PyTorch's own but for the gradient of its bias."""
    if layer.bias is None:
        return layer(rows)
    return _Attached.apply(functional.linear(rows, layer.weight, layer.bias.detach()), layer.bias)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shortcut: Tensor | None, bias: Tensor) -> Tensor:
        ctx.types = None if shortcut is None else shortcut.dtype, bias.dtype
        return _sum(hidden, shortcut, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dy = dy.contiguous(memory_format=torch.channels_last)
        shortcut, bias = ctx.types
        total = _total(dy.permute(0, 2, 3, 1), bias) if ctx.needs_input_grad[2] else None
        return dy, None if shortcut is None else dy.to(shortcut), total


class _Attached(torch.autograd.Function):
    """Rows to which the bias was added before: the rows, and the gradient of the bias."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor) -> Tensor:
        ctx.kind = bias.dtype
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return dy, _total(dy, ctx.kind) if ctx.needs_input_grad[1] else None


def _total(dy: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over all but the last dimension."""
    return _columns(dy.reshape(-1, dy.shape[-1])).sum(dim=0).to(dtype)


# ---------------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("diffsiam::add_bias", mutates_args=())
def _sum(hidden: Tensor, shortcut: Tensor | None, bias: Tensor) -> Tensor:
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    other = hidden if shortcut is None else shortcut.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(hidden)
    rows, channels, columns, blocks, block = _tiles(hidden.permute(0, 2, 3, 1))
    _sum_kernel[(-(-rows // block), blocks)](
        hidden, other, bias, y, rows, channels,
        SHORTCUT=shortcut is not None, COLUMNS=columns, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return y


@torch.library.custom_op("diffsiam::column_sums", mutates_args=())
def _columns(dy: Tensor) -> Tensor:
    """Sums over parts of the rows of ``dy`` (rows, C): (parts, C) float32."""
    dy = dy.contiguous()
    rows, channels, columns, blocks, block = _tiles(dy)
    parts = max(1, min(_PROGRAMS // blocks, -(-rows // block)))
    sums = torch.empty(parts, channels, device=dy.device)
    _columns_kernel[(parts, blocks)](dy, sums, rows, channels, parts, COLUMNS=columns, BLOCK=block, num_warps=8)
    return sums


def _tiles(x: Tensor) -> tuple[int, int, int, int, int]:
    """Rows and channels of ``x`` (..., C), channels of a tile and how many such there are, rows of a tile."""
    channels = x.shape[-1]
    columns = min(64, 1 << (channels - 1).bit_length())
    return x.numel() // channels, channels, columns, -(-channels // columns), _HELD // columns


@_sum.register_fake
def _(hidden, shortcut, bias):  # type: ignore[no-untyped-def]
    return torch.empty_like(hidden, memory_format=torch.channels_last)


@_columns.register_fake
def _(dy):  # type: ignore[no-untyped-def]
    return dy.new_empty(1, dy.shape[1], dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------ kernels
if triton is not None:

    @triton.jit
    def _sum_kernel(  # type: ignore[no-untyped-def]
        hidden, shortcut, bias, y, rows, channels,
        SHORTCUT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = (row[:, None] < rows) & there[None]
        at = row[:, None].to(tl.int64) * channels + column[None]
        v = tl.load(hidden + at, mask=inside, other=0).to(tl.float32)
        if SHORTCUT:
            v += tl.load(shortcut + at, mask=inside, other=0).to(tl.float32)
        v += tl.load(bias + column, mask=there, other=0).to(tl.float32)[None]
        tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _columns_kernel(dy, sums, rows, channels, parts, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        total = tl.zeros((COLUMNS,), tl.float32)
        for begin in range(tl.program_id(0) * BLOCK, rows, parts * BLOCK):
            row = begin + tl.arange(0, BLOCK)
            inside = (row[:, None] < rows) & there[None]
            at = row[:, None].to(tl.int64) * channels + column[None]
            total += tl.sum(tl.load(dy + at, mask=inside, other=0).to(tl.float32), axis=0)
        tl.store(sums + tl.program_id(0) * channels + column, total, mask=there)
