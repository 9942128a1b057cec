"""Batch norm, shortcut and ReLU of a residual network in one operator: y = relu(BN(x) + shortcut).

In training PyTorch takes some twelve kernels and as many passes over a feature map for it, forward and backward. On a
GPU with Triton, three each way do: sums over parts of the batch, their total, and the result. They work on
channels-last memory as rows of channels, add up in float32 and in a fixed order. Elsewhere `norm_relu` is PyTorch's own
operations.
"""

from __future__ import annotations

from typing import Any

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
_HELD = 4096  # numbers that a program holds at a time
_SUMMED = 16  # channels of which a program sums the parts


def norm_relu(x: Tensor, norm: nn.Module, shortcut: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """relu(norm(x) + shortcut), (N, C, H, W), with the statistics of the batch where ``norm`` trains, which its running
    ones follow."""
    own = type(norm) is nn.BatchNorm2d and norm.training and norm.momentum is not None and norm.affine
    if own and runtime.runs_triton(x):
        assert isinstance(norm, nn.BatchNorm2d)
        return _NormRelu.apply(x, norm.weight, norm.bias, shortcut, norm, relu)
    y = norm(x) if shortcut is None else norm(x) + shortcut
    return functional.relu(y) if relu else y


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, norm: nn.BatchNorm2d, relu: bool
    ) -> Tensor:
        statistics = norm.running_mean, norm.running_var, norm.num_batches_tracked
        y, mean, rstd = _forward(x, weight, bias, shortcut, *statistics, norm.momentum, norm.eps, relu)
        ctx.relu, ctx.has_shortcut = relu, shortcut is not None
        ctx.save_for_backward(x, weight, bias, mean, rstd, y if relu and shortcut is not None else mean)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, mean, rstd, y = ctx.saved_tensors
        dx, dweight, dbias, dshortcut = _backward(dy, x, weight, bias, mean, rstd, y, ctx.relu, ctx.has_shortcut)
        return dx, dweight, dbias, dshortcut if ctx.has_shortcut else None, None, None


# ---------------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("diffsiam::norm_relu", mutates_args=("running_mean", "running_var", "batches"))
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, running_mean: Tensor, running_var: Tensor,
    batches: Tensor, momentum: float, eps: float, relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y in channels-last memory, and the batch's mean and 1/std, (C,) float32."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    mean, rstd = (torch.empty(x.shape[1], device=x.device) for _ in range(2))
    given = y if shortcut is None else shortcut.contiguous(memory_format=torch.channels_last)
    rows, channels, parts, sizes = _sizes(x)
    sums = torch.empty(2, parts, channels, device=x.device)
    _sums_kernel[(parts, sizes["BLOCKS"])](
        x, x, x, mean, mean, mean, mean, sums, rows, channels, parts, FORWARD=True, RELU=relu, KEPT=False,
        COLUMNS=sizes["COLUMNS"], BLOCK=sizes["BLOCK"], num_warps=8,
    )  # fmt: skip
    _statistics_kernel[(-(-channels // _SUMMED),)](
        sums, x, mean, rstd, running_mean, running_var, batches, momentum, eps, rows, channels, parts,
        PARTS=sizes["PARTS"], COLUMNS=_SUMMED, num_warps=8,
    )  # fmt: skip
    _result_kernel[(-(-rows // sizes["BLOCK"]), sizes["BLOCKS"])](
        x, given, weight, bias, mean, rstd, y, rows, channels, RELU=relu, SHORTCUT=shortcut is not None,
        COLUMNS=sizes["COLUMNS"], BLOCK=sizes["BLOCK"], num_warps=8,
    )  # fmt: skip
    return y, mean, rstd


@torch.library.custom_op("diffsiam::norm_relu_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, y: Tensor, relu: bool,
    shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias and shortcut; the last is empty where there is none."""
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    rows, channels, parts, sizes = _sizes(x)
    sums = torch.empty(2, parts, channels, device=x.device)
    dx, totals = torch.empty_like(x), torch.empty(2, channels, device=x.device)
    dshortcut = torch.empty_like(x) if shortcut else dx.new_empty(0)
    kept = relu and shortcut  # then the mask is that of y, which x alone does not tell
    _sums_kernel[(parts, sizes["BLOCKS"])](
        x, dy, y, weight, bias, mean, rstd, sums, rows, channels, parts, FORWARD=False, RELU=relu, KEPT=kept,
        COLUMNS=sizes["COLUMNS"], BLOCK=sizes["BLOCK"], num_warps=8,
    )  # fmt: skip
    _totals_kernel[(-(-channels // _SUMMED),)](
        sums, totals, channels, parts, PARTS=sizes["PARTS"], COLUMNS=_SUMMED, num_warps=8
    )
    _gradient_kernel[(-(-rows // sizes["BLOCK"]), sizes["BLOCKS"])](
        x, dy, y, weight, bias, mean, rstd, totals, dx, dshortcut, rows, channels, RELU=relu, KEPT=kept,
        SHORTCUT=shortcut, COLUMNS=sizes["COLUMNS"], BLOCK=sizes["BLOCK"], num_warps=8,
    )  # fmt: skip
    return dx, totals[1].clone(), totals[0].clone(), dshortcut


@_forward.register_fake
def _(x, weight, bias, shortcut, running_mean, running_var, batches, momentum, eps, relu):  # type: ignore[no-untyped-def]
    mean = x.new_empty(x.shape[1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), mean, torch.empty_like(mean)


@_backward.register_fake
def _(dy, x, weight, bias, mean, rstd, y, relu, shortcut):  # type: ignore[no-untyped-def]
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, torch.empty_like(mean), torch.empty_like(mean), torch.empty_like(dx) if shortcut else dx.new_empty(0)


def _sizes(x: Tensor) -> tuple[int, int, int, dict[str, int]]:
    """Rows and channels of ``x``, in how many parts the rows are summed, and the tiles of the kernels."""
    channels = x.shape[1]
    rows = x.numel() // channels
    columns = min(64, 1 << (channels - 1).bit_length())
    blocks = -(-channels // columns)
    block = min(_HELD // columns, 1 << (rows - 1).bit_length())
    parts = max(1, min(_PROGRAMS // blocks, -(-rows // block)))
    sizes = {"COLUMNS": columns, "BLOCKS": blocks, "BLOCK": block, "PARTS": 1 << (parts - 1).bit_length()}
    return rows, channels, parts, sizes


# ------------------------------------------------------------------------------------------------------ kernels
if triton is not None:

    @triton.jit
    def _sums_kernel(  # type: ignore[no-untyped-def]
        x, dy, y, weight, bias, mean, rstd, sums, rows, channels, parts, FORWARD: tl.constexpr, RELU: tl.constexpr,
        KEPT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Of a part of the rows: sums of x and x^2, less the first row's x, or of dv and dv * xhat."""
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        one = tl.zeros((COLUMNS,), tl.float32)
        two = tl.zeros((COLUMNS,), tl.float32)
        if FORWARD:
            shift = tl.load(x + column, mask=there, other=0).to(tl.float32)
        else:
            centre = tl.load(mean + column, mask=there, other=0)
            inverse = tl.load(rstd + column, mask=there, other=0)
            w = tl.load(weight + column, mask=there, other=0).to(tl.float32)
            b = tl.load(bias + column, mask=there, other=0).to(tl.float32)
        for begin in range(tl.program_id(0) * BLOCK, rows, parts * BLOCK):
            row = begin + tl.arange(0, BLOCK)
            inside = (row[:, None] < rows) & there[None]
            at = row[:, None].to(tl.int64) * channels + column[None]
            value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
            if FORWARD:
                value = tl.where(inside, value - shift[None], 0)
                one += tl.sum(value, axis=0)
                two += tl.sum(value * value, axis=0)
            else:
                xhat = (value - centre[None]) * inverse[None]
                dv = tl.load(dy + at, mask=inside, other=0).to(tl.float32)
                if KEPT:
                    dv = tl.where(tl.load(y + at, mask=inside, other=0) > 0, dv, 0)
                elif RELU:
                    dv = tl.where(xhat * w[None] + b[None] > 0, dv, 0)
                one += tl.sum(dv, axis=0)
                two += tl.sum(dv * xhat, axis=0)
        tl.store(sums + tl.program_id(0) * channels + column, one, mask=there)
        tl.store(sums + (parts + tl.program_id(0)) * channels + column, two, mask=there)

    @triton.jit
    def _total(sums, column, channels, parts, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
        part = tl.arange(0, PARTS)
        inside = (part[:, None] < parts) & (column[None] < channels)
        return tl.sum(tl.load(sums + part[:, None] * channels + column[None], mask=inside, other=0), axis=0)

    @triton.jit
    def _statistics_kernel(  # type: ignore[no-untyped-def]
        sums, x, mean, rstd, running_mean, running_var, batches, momentum, eps, rows, channels, parts,
        PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        offset = _total(sums, column, channels, parts, PARTS) / rows
        square = _total(sums + parts * channels, column, channels, parts, PARTS) / rows
        variance = tl.maximum(square - offset * offset, 0)
        centre = tl.load(x + column, mask=there, other=0).to(tl.float32) + offset
        tl.store(mean + column, centre, mask=there)
        tl.store(rstd + column, 1 / tl.sqrt(variance + eps), mask=there)
        before = tl.load(running_mean + column, mask=there, other=0)
        tl.store(running_mean + column, before + momentum * (centre - before), mask=there)
        before = tl.load(running_var + column, mask=there, other=0)
        tl.store(running_var + column, before + momentum * (variance * rows / (rows - 1) - before), mask=there)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)

    @triton.jit
    def _totals_kernel(sums, totals, channels, parts, PARTS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        for k in range(2):
            total = _total(sums + k * parts * channels, column, channels, parts, PARTS)
            tl.store(totals + k * channels + column, total, mask=column < channels)

    @triton.jit
    def _result_kernel(  # type: ignore[no-untyped-def]
        x, shortcut, weight, bias, mean, rstd, y, rows, channels, RELU: tl.constexpr, SHORTCUT: tl.constexpr,
        COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        w = tl.load(weight + column, mask=there, other=0).to(tl.float32)
        factor = w * tl.load(rstd + column, mask=there, other=0)
        b = tl.load(bias + column, mask=there, other=0).to(tl.float32)
        centre = tl.load(mean + column, mask=there, other=0)
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = (row[:, None] < rows) & there[None]
        at = row[:, None].to(tl.int64) * channels + column[None]
        v = (tl.load(x + at, mask=inside, other=0).to(tl.float32) - centre[None]) * factor[None] + b[None]
        if SHORTCUT:
            v += tl.load(shortcut + at, mask=inside, other=0).to(tl.float32)
        if RELU:
            v = tl.maximum(v, 0)
        tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _gradient_kernel(  # type: ignore[no-untyped-def]
        x, dy, y, weight, bias, mean, rstd, totals, dx, dshortcut, rows, channels, RELU: tl.constexpr,
        KEPT: tl.constexpr, SHORTCUT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        w = tl.load(weight + column, mask=there, other=0).to(tl.float32)
        b = tl.load(bias + column, mask=there, other=0).to(tl.float32)
        centre = tl.load(mean + column, mask=there, other=0)
        inverse = tl.load(rstd + column, mask=there, other=0)
        even = tl.load(totals + column, mask=there, other=0) / rows
        slope = tl.load(totals + channels + column, mask=there, other=0) / rows
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = (row[:, None] < rows) & there[None]
        at = row[:, None].to(tl.int64) * channels + column[None]
        xhat = (tl.load(x + at, mask=inside, other=0).to(tl.float32) - centre[None]) * inverse[None]
        dv = tl.load(dy + at, mask=inside, other=0).to(tl.float32)
        if KEPT:
            dv = tl.where(tl.load(y + at, mask=inside, other=0) > 0, dv, 0)
        elif RELU:
            dv = tl.where(xhat * w[None] + b[None] > 0, dv, 0)
        if SHORTCUT:
            tl.store(dshortcut + at, dv.to(dshortcut.dtype.element_ty), mask=inside)
        d = (w * inverse)[None] * (dv - even[None] - xhat * slope[None])
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=inside)
