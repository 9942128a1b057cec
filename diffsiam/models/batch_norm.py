"""Batch norm, shortcut and ReLU of a residual network in one operator: y = relu(BN(x) + shortcut).

In training PyTorch takes some twelve kernels and as many passes over a feature map for it, forward and backward. On a
GPU with Triton, three each way do: sums over parts of the batch, their total, and the result. They work on
channels-last memory as rows of channels, add up in float32 and in a fixed order. Elsewhere `norm_relu` is PyTorch's own
operations.

A batch may hold several views of the same images, one after the other, and each has statistics of its own, as if it
went through the network alone: `of_views` is the one place that decides whether views go together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

_PROGRAMS = 528  # four for each multiprocessor of a large GPU, as many as it holds
_HELD = 4096  # numbers that a program holds at a time
_READ = 2048  # numbers that its 256 threads read at once, 16 bytes of bf16 each
_SUMMED = 8  # channels of which a program sums the parts, 32 bytes


def of_views(network: Callable[..., Tensor], *views: Tensor) -> Sequence[Tensor]:
    """``network(view)`` of each of the views, of one shape, with running statistics that follow one after the other.

    With Triton's kernels one call takes all, ``network(all, number)``: fewer and larger operations, and one gradient of
    each weight in place of several and their sum. A CPU gains nothing by it, and loses the cache.
    """
    if len(views) > 1 and runtime.runs_triton(views[0]):
        return network(torch.cat(views), len(views)).chunk(len(views))
    return [network(view) for view in views]


def norm_relu(
    x: Tensor, norm: nn.Module, shortcut: Tensor | None = None, *, relu: bool = True, views: int = 1
) -> Tensor:
    """relu(norm(x) + shortcut), (N, C, H, W) or (N, C), with the statistics of the batch where ``norm`` trains, which
    its running ones follow; of each of its ``views`` equal parts, where it has several, in their order."""
    own = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d) and norm.training and norm.momentum is not None
    if own and runtime.runs_triton(x):
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if x.dim() == 2:
            assert shortcut is None
            return _NormRelu.apply(x[:, :, None, None], norm.weight, norm.bias, None, norm, relu, views).flatten(1)
        return _NormRelu.apply(x, norm.weight, norm.bias, shortcut, norm, relu, views)
    together = views == 1 or not norm.training
    y = norm(x) if together else torch.cat([norm(view) for view in x.chunk(views)])
    y = y if shortcut is None else y + shortcut
    return functional.relu(y) if relu else y


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shortcut: Tensor | None,
        norm: nn.BatchNorm1d | nn.BatchNorm2d, relu: bool, views: int,
    ) -> Tensor:  # fmt: skip
        if weight is None or bias is None:
            weight, bias = torch.ones(x.shape[1], device=x.device), torch.zeros(x.shape[1], device=x.device)
        statistics = norm.running_mean, norm.running_var, norm.num_batches_tracked
        y, mean, rstd = _forward(x, weight, bias, shortcut, *statistics, norm.momentum, norm.eps, relu, views)
        ctx.relu, ctx.has_shortcut = relu, shortcut is not None
        ctx.save_for_backward(x, weight, bias, mean, rstd, y if relu and shortcut is not None else mean)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, mean, rstd, y = ctx.saved_tensors
        found = _backward(dy, x, weight, bias, mean, rstd, y, ctx.relu, ctx.has_shortcut)
        asked = zip(found, ctx.needs_input_grad[:4], strict=True)
        return *(gradient if needed else None for gradient, needed in asked), None, None, None


# ---------------------------------------------------------------------------------------------------- operators
@torch.library.custom_op("diffsiam::norm_relu", mutates_args=("running_mean", "running_var", "batches"))
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, running_mean: Tensor, running_var: Tensor,
    batches: Tensor, momentum: float, eps: float, relu: bool, views: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y in channels-last memory, and mean and 1/std of each view, (views, C) float32."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    mean, variance, rstd = (torch.empty(views, x.shape[1], device=x.device) for _ in range(3))
    given = y if shortcut is None else shortcut.contiguous(memory_format=torch.channels_last)
    rows, channels, parts, grid, sizes = _reading(x, views, 4)
    sums = torch.empty(2, views, parts, channels, device=x.device)
    _sums_kernel[grid](
        x, x, x, mean, mean, mean, mean, sums, rows, channels, parts, FORWARD=True, RELU=relu, KEPT=False, **sizes
    )
    grid, sizes = _totalling(views, parts, channels)
    _statistics_kernel[grid](sums, x, mean, variance, rstd, eps, rows, channels, parts, **sizes)
    grid, sizes = _writing(x, views)
    _result_kernel[grid](
        x, given, weight, bias, mean, variance, rstd, y, running_mean, running_var, batches, momentum, rows, channels,
        RELU=relu, SHORTCUT=shortcut is not None, **sizes,
    )  # fmt: skip
    return y, mean, rstd


@torch.library.custom_op("diffsiam::norm_relu_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, y: Tensor, relu: bool,
    shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias and shortcut; the last is empty where there is none."""
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    views = len(mean)
    dx, dshortcut = torch.empty_like(x), torch.empty_like(x) if shortcut else x.new_empty(0)
    dweight, dbias = (torch.empty(x.shape[1], device=x.device) for _ in range(2))
    kept = relu and shortcut  # then the mask is that of y, which x alone does not tell
    rows, channels, parts, grid, sizes = _reading(x, views, 2)
    sums, totals = (torch.empty(2, views, n, channels, device=x.device) for n in (parts, 1))
    _sums_kernel[grid](
        x, dy, y, weight, bias, mean, rstd, sums, rows, channels, parts, FORWARD=False, RELU=relu, KEPT=kept, **sizes
    )
    grid, sizes = _totalling(views, parts, channels)
    _totals_kernel[grid](sums, totals, channels, parts, **sizes)
    grid, sizes = _writing(x, views)
    _gradient_kernel[grid](
        x, dy, y, weight, bias, mean, rstd, totals, dx, dweight, dbias, dshortcut, rows, channels, RELU=relu,
        KEPT=kept, SHORTCUT=shortcut, **sizes,
    )  # fmt: skip
    return dx, dweight, dbias, dshortcut


@_forward.register_fake
def _(x, weight, bias, shortcut, running_mean, running_var, batches, momentum, eps, relu, views):  # type: ignore[no-untyped-def]
    mean = x.new_empty(views, x.shape[1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), mean, torch.empty_like(mean)


@_backward.register_fake
def _(dy, x, weight, bias, mean, rstd, y, relu, shortcut):  # type: ignore[no-untyped-def]
    dx, dweight = torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(mean[0])
    return dx, dweight, torch.empty_like(dweight), torch.empty_like(dx) if shortcut else dx.new_empty(0)


def _tiles(x: Tensor, views: int, held: int) -> tuple[int, int, int, int, int]:
    """Rows of a view, channels, and of tiles of ``held`` numbers: columns, how many of them side by side, and rows."""
    channels = x.shape[1]
    rows = x.numel() // channels // views
    columns = min(64, _padded(channels))
    return rows, channels, columns, -(-channels // columns), min(held // columns, _padded(rows))


def _padded(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _reading(x: Tensor, views: int, turns: int) -> tuple[int, int, int, tuple[int, ...], dict[str, Any]]:
    """Rows of a view, channels, in how many parts the rows are summed, and grid and tiles of `_sums_kernel`, where a
    program reads up to ``turns`` tiles before it waits for the first. All have the same number to read, or almost."""
    rows, channels, columns, blocks, block = _tiles(x, views, _READ)
    while turns > 1 and -(-rows // (block * turns)) * blocks * views < _PROGRAMS:
        turns //= 2
    chunks = -(-rows // (block * turns))
    each = -(-chunks * blocks * views // _PROGRAMS)
    parts = -(-chunks // each)
    full = channels % columns == 0 and rows % (block * turns) == 0
    sizes = {"COLUMNS": columns, "BLOCK": block, "TURNS": turns, "FULL": full, "num_warps": 8}
    return rows, channels, parts, (parts, blocks, views), sizes


def _totalling(views: int, parts: int, channels: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Grid and tiles of the kernels that add up the parts."""
    return (-(-channels // _SUMMED), views), {"PARTS": _padded(parts), "COLUMNS": _SUMMED, "num_warps": 8}


def _writing(x: Tensor, views: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Grid and tiles of the kernels that make as much as they read."""
    rows, channels, columns, blocks, block = _tiles(x, views, _HELD)
    full = channels % columns == 0 and rows % block == 0
    sizes = {"COLUMNS": columns, "BLOCK": block, "VIEWS": views, "FULL": full, "num_warps": 8}
    return (-(-rows // block), blocks, views), sizes


# ------------------------------------------------------------------------------------------------------ kernels
# A tile is (BLOCK rows of one view, COLUMNS channels). Where all tiles are FULL nothing is masked.
if triton is not None:

    @triton.jit
    def _sums_kernel(  # type: ignore[no-untyped-def]
        x, dy, y, weight, bias, mean, rstd, sums, rows, channels, parts, FORWARD: tl.constexpr, RELU: tl.constexpr,
        KEPT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr, FULL: tl.constexpr,
    ):  # fmt: skip
        """Of a part of a view's rows: sums of x and x^2, less the view's first x, or of dv and dv * xhat."""
        part, view = tl.program_id(0), tl.program_id(2)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        origin = view.to(tl.int64) * rows
        one = tl.zeros((BLOCK, COLUMNS), tl.float32)
        two = tl.zeros((BLOCK, COLUMNS), tl.float32)
        if FORWARD:
            shift = tl.load(x + origin * channels + column, mask=there, other=0).to(tl.float32)
        else:
            centre = tl.load(mean + view * channels + column, mask=there, other=0)
            inverse = tl.load(rstd + view * channels + column, mask=there, other=0)
            factor = tl.load(weight + column, mask=there, other=0).to(tl.float32) * inverse
            b = tl.load(bias + column, mask=there, other=0).to(tl.float32)
        row = tl.arange(0, TURNS)[:, None, None] * BLOCK + tl.arange(0, BLOCK)[None, :, None]
        none = None if FULL else 0
        for begin in range(part * BLOCK * TURNS, rows, parts * BLOCK * TURNS):
            inside = None if FULL else (begin + row < rows) & there[None, None]
            at = (origin + begin) * channels + (row * channels + column[None, None])
            value = tl.load(x + at, mask=inside, other=none).to(tl.float32)
            if FORWARD:
                value = value - shift[None, None] if FULL else tl.where(inside, value - shift[None, None], 0)
                one += tl.sum(value, axis=0)
                two += tl.sum(value * value, axis=0)
            else:
                dv = tl.load(dy + at, mask=inside, other=none).to(tl.float32)
                if KEPT:
                    dv = tl.where(tl.load(y + at, mask=inside, other=none) > 0, dv, 0)
                value -= centre[None, None]
                if RELU and not KEPT:
                    dv = tl.where(value * factor[None, None] + b[None, None] > 0, dv, 0)
                one += tl.sum(dv, axis=0)
                two += tl.sum(dv * value, axis=0)
        to = (view * parts + part) * channels + column
        one, two = tl.sum(one, axis=0), tl.sum(two, axis=0)
        tl.store(sums + to, one, mask=there)
        tl.store(sums + tl.num_programs(2) * parts * channels + to, two if FORWARD else two * inverse, mask=there)

    @triton.jit
    def _parts(sums, view, column, views, channels, parts, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
        """Both sums of all parts of a view, (PARTS, COLUMNS)."""
        part = tl.arange(0, PARTS)[:, None]
        inside = (part < parts) & (column[None] < channels)
        at = (view * parts + part) * channels + column[None]
        one = tl.load(sums + at, mask=inside, other=0)
        return one, tl.load(sums + views * parts * channels + at, mask=inside, other=0)

    @triton.jit
    def _statistics_kernel(  # type: ignore[no-untyped-def]
        sums, x, mean, variance, rstd, eps, rows, channels, parts, PARTS: tl.constexpr, COLUMNS: tl.constexpr
    ):
        view = tl.program_id(1)
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        one, two = _parts(sums, view, column, tl.num_programs(1), channels, parts, PARTS)
        shift = tl.load(x + view.to(tl.int64) * rows * channels + column, mask=there, other=0).to(tl.float32)
        offset, square = tl.sum(one, axis=0) / rows, tl.sum(two, axis=0) / rows
        v = tl.maximum(square - offset * offset, 0)
        at = view * channels + column
        tl.store(mean + at, shift + offset, mask=there)
        tl.store(variance + at, v, mask=there)
        tl.store(rstd + at, 1 / tl.sqrt(v + eps), mask=there)

    @triton.jit
    def _totals_kernel(sums, totals, channels, parts, PARTS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
        view, views = tl.program_id(1), tl.num_programs(1)
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        one, two = _parts(sums, view, column, views, channels, parts, PARTS)
        tl.store(totals + view * channels + column, tl.sum(one, axis=0), mask=there)
        tl.store(totals + (views + view) * channels + column, tl.sum(two, axis=0), mask=there)

    @triton.jit
    def _result_kernel(  # type: ignore[no-untyped-def]
        x, shortcut, weight, bias, mean, variance, rstd, y, running_mean, running_var, batches, momentum, rows,
        channels, RELU: tl.constexpr, SHORTCUT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
        VIEWS: tl.constexpr, FULL: tl.constexpr,
    ):  # fmt: skip
        """y, and the running statistics, which follow one view after the other."""
        first, view = tl.program_id(0) * BLOCK, tl.program_id(2)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        row = tl.arange(0, BLOCK)
        inside = None if FULL else (first + row[:, None] < rows) & there[None]
        none = None if FULL else 0
        at = (view.to(tl.int64) * rows + first) * channels + (row[:, None] * channels + column[None])
        v = tl.load(x + at, mask=inside, other=none).to(tl.float32)
        if SHORTCUT:
            added = tl.load(shortcut + at, mask=inside, other=none).to(tl.float32)
        w = tl.load(weight + column, mask=there, other=0).to(tl.float32)
        factor = w * tl.load(rstd + view * channels + column, mask=there, other=0)
        b = tl.load(bias + column, mask=there, other=0).to(tl.float32)
        centre = tl.load(mean + view * channels + column, mask=there, other=0)
        v = (v - centre[None]) * factor[None] + b[None]
        if SHORTCUT:
            v += added
        if RELU:
            v = tl.maximum(v, 0)
        tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)
        if (first == 0) & (view == 0):
            one = tl.load(running_mean + column, mask=there, other=0)
            two = tl.load(running_var + column, mask=there, other=0)
            for k in tl.static_range(VIEWS):
                one += momentum * (tl.load(mean + k * channels + column, mask=there, other=0) - one)
                unbiased = tl.load(variance + k * channels + column, mask=there, other=0) * rows / (rows - 1)
                two += momentum * (unbiased - two)
            tl.store(running_mean + column, one, mask=there)
            tl.store(running_var + column, two, mask=there)
            if tl.program_id(1) == 0:
                tl.store(batches, tl.load(batches) + VIEWS)

    @triton.jit
    def _gradient_kernel(  # type: ignore[no-untyped-def]
        x, dy, y, weight, bias, mean, rstd, totals, dx, dweight, dbias, dshortcut, rows, channels, RELU: tl.constexpr,
        KEPT: tl.constexpr, SHORTCUT: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, VIEWS: tl.constexpr,
        FULL: tl.constexpr,
    ):  # fmt: skip
        """Gradients of x and shortcut, and those of weight and bias: the totals of all views."""
        first, view = tl.program_id(0) * BLOCK, tl.program_id(2)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        there = column < channels
        row = tl.arange(0, BLOCK)
        inside = None if FULL else (first + row[:, None] < rows) & there[None]
        none = None if FULL else 0
        at = (view.to(tl.int64) * rows + first) * channels + (row[:, None] * channels + column[None])
        value = tl.load(x + at, mask=inside, other=none).to(tl.float32)
        dv = tl.load(dy + at, mask=inside, other=none).to(tl.float32)
        if KEPT:
            dv = tl.where(tl.load(y + at, mask=inside, other=none) > 0, dv, 0)
        w = tl.load(weight + column, mask=there, other=0).to(tl.float32)
        b = tl.load(bias + column, mask=there, other=0).to(tl.float32)
        centre = tl.load(mean + view * channels + column, mask=there, other=0)
        inverse = tl.load(rstd + view * channels + column, mask=there, other=0)
        even = tl.load(totals + view * channels + column, mask=there, other=0) / rows
        slope = tl.load(totals + (VIEWS + view) * channels + column, mask=there, other=0) / rows * inverse
        factor = w * inverse
        value -= centre[None]
        if RELU and not KEPT:
            dv = tl.where(value * factor[None] + b[None] > 0, dv, 0)
        if SHORTCUT:
            tl.store(dshortcut + at, dv.to(dshortcut.dtype.element_ty), mask=inside)
        d = factor[None] * (dv - even[None] - value * slope[None])
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=inside)
        if (first == 0) & (view == 0):
            one = tl.zeros((COLUMNS,), tl.float32)
            two = tl.zeros((COLUMNS,), tl.float32)
            for k in tl.static_range(VIEWS):
                one += tl.load(totals + k * channels + column, mask=there, other=0)
                two += tl.load(totals + (VIEWS + k) * channels + column, mask=there, other=0)
            tl.store(dbias + column, one, mask=there)
            tl.store(dweight + column, two, mask=there)
