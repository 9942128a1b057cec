"""The kernels compile for a GPU, at sizes of the thesis's network, and read 16 bytes at a time; none is needed here.

The interpreter of test_kernels.py shows what they compute, and knows nothing of types and layouts of the compiler.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from diffsiam.data import colour
from diffsiam.models import batch_norm, bias, group_norm, maps

triton = pytest.importorskip("triton", reason="Triton does not exist on this platform")
BF16, F32 = "*bf16", "*fp32"


def compiled(kernel: Any, arguments: dict[str, str], sizes: dict[str, Any], aligned: tuple[str, ...] = ()) -> str:
    """PTX of ``kernel`` for an H100, its pointers and the numbers called ``aligned`` divisible by 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, sizes = kernel.arg_names, dict(sizes)
    warps = sizes.pop("num_warps", 8)
    signature = {name: arguments.get(name, "constexpr") for name in names}
    even = [i for i, name in enumerate(names) if arguments.get(name, "").startswith("*") or name in aligned]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in sizes.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in even},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]
    return made.asm["ptx"]


@pytest.mark.parametrize("pairs", [0, 1, 2])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("channels", "side"), [(128, 32), (512, 8), (384, 32)])
def test_group_norm_compiles(channels: int, side: int, added: bool, pairs: int) -> None:
    """384 channels are groups of 12: their tiles are padded, and read 8 bytes at a time."""
    x = torch.empty(128, channels, side, side, device="meta")
    strides = dict.fromkeys(("added_stride", "first_stride", "second_stride"), "i32")
    rows = dict.fromkeys(("bias", "added", "first", "second", "dfirst", "dsecond"), BF16)
    rows |= dict.fromkeys(("weight", "offset", "mean", "rstd", "sums"), F32)
    flags = {"ADDED": added, "BIAS": added, "PAIRS": pairs, "SILU": True}
    _, sizes = group_norm._launch(x, 32, 8192)
    given = rows | strides | {"x": BF16, "y": BF16, "eps": "fp32"}
    forward = compiled(group_norm._forward_kernel, given, sizes | flags, tuple(strides))
    _, sizes = group_norm._launch(x, 32, 4096)
    given = rows | strides | {"dy": BF16, "x": BF16, "dx": BF16, "images": "i32"}
    backward = compiled(group_norm._backward_kernel, given, sizes | flags, tuple(strides))
    wide = "v2" if channels == 384 else "v4"
    for text in (forward, backward):
        assert f"ld.global.{wide}.b32" in text
        assert f"st.global.{wide}.b32" in text


@pytest.mark.parametrize(
    ("views", "channels", "side"), [(1, 64, 32), (2, 64, 32), (3, 64, 32), (2, 512, 4), (2, 2048, 1)]
)
def test_batch_norm_compiles(views: int, channels: int, side: int) -> None:
    """At the thesis's size, heads among them, there is work for every multiprocessor and nothing is masked."""
    x = torch.empty(views * 128, channels, side, side, device="meta")
    numbers, wide = {"rows": "i32", "channels": "i32"}, ("rows", "channels")
    norm = dict.fromkeys(("weight", "bias", "mean", "rstd"), F32)
    images = dict.fromkeys(("x", "dy", "y"), BF16)
    sums = norm | images | numbers | {"sums": F32, "parts": "i32"}
    for forward, relu, kept in [(True, True, False), (False, True, False), (False, True, True), (False, False, False)]:
        rows, _, parts, grid, tile = batch_norm._reading(x, views, 4 if forward else 2)
        assert tile["FULL"]
        assert rows == 128 * side**2
        assert 256 <= math.prod(grid) <= 528
        flags = {"FORWARD": forward, "RELU": relu, "KEPT": kept}
        text = compiled(batch_norm._sums_kernel, sums, tile | flags, wide)
        assert text.count("ld.global.v4.b32") >= tile["TURNS"] * (1 if forward else 3 if kept else 2)
    grid, tile = batch_norm._writing(x, views)
    assert tile["FULL"]
    running = dict.fromkeys(("variance", "running_mean", "running_var"), F32) | {"batches": "*i64", "momentum": "fp32"}
    result = norm | running | numbers | dict.fromkeys(("x", "shortcut", "y"), BF16)
    text = compiled(batch_norm._result_kernel, result, tile | {"RELU": True, "SHORTCUT": True}, wide)
    assert "st.global.v4.b32" in text
    made = dict.fromkeys(("totals", "dweight", "dbias"), F32) | dict.fromkeys(("dx", "dshortcut"), BF16)
    gradient = norm | images | numbers | made
    flags = {"RELU": True, "KEPT": True, "SHORTCUT": True}
    assert "st.global.v4.b32" in compiled(batch_norm._gradient_kernel, gradient, tile | flags, wide)
    _, tile = batch_norm._totalling(views, parts, channels)
    given = dict.fromkeys(("sums", "mean", "variance", "rstd", "totals"), F32) | {"x": BF16, "eps": "fp32"}
    for kernel in (batch_norm._statistics_kernel, batch_norm._totals_kernel):
        compiled(kernel, given | numbers | {"parts": "i32"}, tile, wide)


def test_bias_and_colour_compile() -> None:
    rows, channels, columns, _, block = bias._tiles(torch.empty(128, 32, 32, 256, device="meta"))
    numbers, tile = {"rows": "i32", "channels": "i32"}, {"COLUMNS": columns, "BLOCK": block}
    assert (rows, channels) == (128 * 32 * 32, 256)
    images = dict.fromkeys(("hidden", "shortcut", "bias", "y"), BF16)
    for shortcut in (False, True):
        sizes = tile | {"SHORTCUT": shortcut}
        assert "st.global.v4.b32" in compiled(bias._sum_kernel, images | numbers, sizes, tuple(numbers))
    given = numbers | {"dy": BF16, "sums": F32, "parts": "i32"}
    assert "ld.global.v4.b32" in compiled(bias._columns_kernel, given, tile, tuple(numbers))
    for side in (32, 64, 128):
        given = {"x": F32, "factors": F32, "order": "*i64", "grey": "*i1", "out": F32}
        sizes = {"PIXELS": side**2, "BLOCK": side**2, "num_warps": max(4, min(32, side**2 // 1024))}
        compiled(colour._jitter_kernel, given, sizes)


@pytest.mark.parametrize("back", [False, True])
def test_enlarged_and_joined_maps_compile(back: bool) -> None:
    x = torch.empty(128, 256, 16, 16, device="meta")
    numbers = dict.fromkeys(("rows", "channels", "width", "own", "more"), "i32")
    _, sizes = maps._tiles(x, 256, 4096)
    text = compiled(maps._double_kernel, numbers | {"x": BF16, "y": BF16}, sizes | {"BACK": back}, tuple(numbers))
    assert "ld.global.v4.b32" in text
    assert "st.global.v4.b32" in text
    _, sizes = maps._tiles(x, 384, 8192, maps._width(256, 128))
    given = numbers | {"x": BF16, "skip": BF16, "y": BF16}
    text = compiled(maps._join_kernel, given, sizes | {"BACK": back}, tuple(numbers))
    assert "ld.global.v4.b32" in text
    assert "st.global.v4.b32" in text
