"""The kernels of Triton, run number by number on the CPU by Triton's interpreter, against PyTorch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

CHECK = """
import copy
from unittest import mock
import torch
from torch import nn
from torch.nn import functional
from diffsiam import params, runtime
from diffsiam.data import augment, colour
from diffsiam.models import batch_norm, bias, encoder, group_norm, maps, simsiam

def reference(x, weight, offset, bias, added, first, second, groups, silu):
    for row in (bias, added):
        x = x if row is None else x + row.view(-1, x.shape[1], 1, 1)
    h = functional.group_norm(x, groups, weight, offset, 0.1)
    for pair in (first, second):
        if pair is not None:
            h = (1 + pair[:, : x.shape[1], None, None]) * h + pair[:, x.shape[1] :, None, None]
    return functional.silu(h) if silu else h

torch.manual_seed(0)
count = 0
for n, channels, side, groups in [(2, 12, 5, 4), (1, 24, 3, 1), (2, 96, 8, 8), (1, 128, 4, 32)]:
    for has in range(16):
        silu = has in (0, 5, 10, 15)
        x = torch.randn(n, channels, side, side, dtype=torch.float64) + 3
        shapes = [(channels,), (n, channels), (n, 2 * channels), (n, 2 * channels)]
        rows = [torch.randn(shape, dtype=torch.float64) if has >> k & 1 else None for k, shape in enumerate(shapes)]
        if has & 12 == 8:
            continue  # the second pair without the first
        given = [x, *torch.randn(2, channels, dtype=torch.float64).unbind(), *rows]
        exact, ours = ([None if t is None else t.to(kind, copy=True).requires_grad_() for t in given]
                       for kind in (torch.float64, torch.float32))
        y = reference(*exact, groups, silu)
        got = group_norm._normalized(*ours, groups, 0.1, silu, torch.float32)[0]
        dy = torch.randn_like(y)
        y.backward(dy)
        got.backward(dy.float())
        assert (got - y).norm() < 1e-5 * y.norm()
        for mine, theirs in zip(ours, exact):
            if theirs is not None:
                assert (mine.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm(), (n, channels, has)
                count += 1
runtime.runs_triton = lambda x: x.dtype == torch.float32
batch_norm._PROGRAMS = 6  # so that each reads several tiles, of few images
for n, channels, side, views in [(3, 12, 5, 1), (6, 80, 3, 3), (40, 4, 16, 2), (8, 64, 8, 2)]:
    for has in (False, True):
        for relu in (False, True):
            x = torch.randn(n, channels, side, side, dtype=torch.float64) * 2 + 1
            x += torch.arange(views).repeat_interleave(n // views).view(-1, 1, 1, 1)
            other = torch.randn_like(x)
            exact, ours = (nn.BatchNorm2d(channels, 0.1, 0.3).to(kind) for kind in (torch.float64, torch.float32))
            for _ in range(2):  # running statistics move twice
                with torch.no_grad():
                    for p, q in zip(exact.parameters(), ours.parameters()):
                        p.copy_(torch.randn(channels))
                        q.copy_(p)
                leaves = [[t.to(kind).requires_grad_() for t in (x.clone(), other.clone())]
                          for kind in (torch.float64, torch.float32)]
                dy = torch.randn_like(x)
                exact.zero_grad(), ours.zero_grad()
                a, b = leaves[0]
                pairs = zip(a.chunk(views), b.chunk(views))
                ys = [torch.cat([exact(v) + has * w for v, w in pairs])]
                ys[0] = functional.relu(ys[0]) if relu else ys[0]
                a, b = leaves[1]
                ys += [batch_norm.norm_relu(a, ours, b if has else None, relu=relu, views=views)]
                for y in ys:
                    y.backward(dy.to(y.dtype))
            pairs = [(ys[1], ys[0]), (leaves[1][0].grad, leaves[0][0].grad)]
            pairs += [(leaves[1][1].grad, leaves[0][1].grad)] * has
            pairs += [(q.grad, p.grad) for p, q in zip(exact.parameters(), ours.parameters())]
            pairs += [(q, p) for p, q in zip(exact.buffers(), ours.buffers())]
            for mine, theirs in pairs:
                assert (mine - theirs).double().norm() < 1e-5 * theirs.double().norm(), (n, channels, has, relu)
                count += 1
views = [torch.randn(6, 3, 8, 8) + v for v in range(2)]
calls = []
for kind, passes in [("resnet10", 2), ("conv", 1)]:
    nets = nn.ModuleList([encoder.build(kind, 2, 8, 16), simsiam.Heads(16)])
    exact = copy.deepcopy(nets).double()
    nets[0].register_forward_hook(lambda module, given, z: calls.append((kind, given[1], len(z))))
    losses = []
    for own, dtype in ((nets, torch.float32), (exact, torch.float64)):
        to = torch.Tensor.double if dtype == torch.float64 else torch.Tensor.float
        with mock.patch.object(torch.Tensor, "float", to):
            for _ in range(passes):
                z = batch_norm.of_views(own[0], *(v.to(dtype) for v in views))
                losses.append(own[1](*z)[0])
                losses[-1].backward()
    values = [[t.grad for t in own.parameters()] + list(own.buffers()) for own in (nets, exact)]
    for mine, theirs in [*zip(*values), (losses[passes - 1], losses[-1])]:
        assert (mine - theirs).double().norm() < 1e-4 * theirs.double().norm() + 1e-6, (kind, mine, theirs)
        count += 1
assert calls == [("resnet10", 2, 12), ("resnet10", 2, 12), ("conv", 2, 12)]
for n, channels, side in [(3, 12, 5), (2, 96, 8), (1, 160, 4)]:
    h, x = torch.randn(n, channels, side, side), torch.randn(n, channels, side, side)
    b = torch.randn(channels)
    leaves = [t.requires_grad_() for t in (h, x, b)]
    y = bias.add(*leaves)
    dy = torch.randn_like(y)
    y.backward(dy)
    assert torch.allclose(y, h + x + b[:, None, None], atol=1e-6)
    assert torch.equal(h.grad, dy) and torch.equal(x.grad, dy)
    assert torch.allclose(b.grad, dy.sum((0, 2, 3)), atol=1e-4)
    count += 1
    alone = bias.add(h.detach(), None, b)
    assert torch.allclose(alone, h + b[:, None, None], atol=1e-6)
    layer, ours = (nn.Linear(channels, 20) for _ in range(2))
    ours.load_state_dict(layer.state_dict())
    results = []
    for net, apply in ((layer, layer), (ours, lambda rows: bias.linear(rows, ours))):
        rows = h.detach().permute(0, 2, 3, 1).flatten(1, 2).requires_grad_()
        made = apply(rows)
        made.square().sum().backward()
        results.append([made, rows.grad, *(p.grad for p in net.parameters())])
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)
        count += 1
for n, own, more, side in [(2, 12, 5, 3), (3, 64, 32, 4), (1, 192, 128, 6), (2, 8, 24, 1)]:
    for both in (False, True):
        results = []
        for triton in (False, True):
            runtime.runs_triton = lambda x: triton
            torch.manual_seed(1)
            x, skip = (torch.randn(n, c, side, side).contiguous(memory_format=torch.channels_last) for c in (own, more))
            x.requires_grad_()
            skip.requires_grad_(both)
            y = maps.doubled(maps.joined(x, skip))
            y.backward(torch.randn(y.shape))
            results.append([y, x.grad, skip.grad])
        for mine, theirs in zip(*results, strict=True):
            if theirs is not None:
                assert torch.allclose(mine, theirs, atol=1e-6), (n, own, more, both)
                count += 1
views = params.Views((0.2, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 64)
for side in (8, 12):
    drawn = augment.draw(40, side, views, torch.Generator().manual_seed(0))
    x = torch.rand(40, 3, side, side)
    got = colour._kernel(x, drawn.jitter, drawn.order, drawn.grey)
    assert torch.allclose(got, colour.jitter(x, drawn.jitter, drawn.order, drawn.grey), atol=1e-5)
    assert 0 < drawn.grey.sum() < 40
print("checked", count)
"""


BLOCKS = """
import copy
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffsiam import params, runtime
from diffsiam.models import blocks
from diffsiam.models.decoder import Decoder
from diffsiam.models.unet import DiffusionModel

def results(block, values, dy, told):
    x, temb, z = leaves = [v.to(block.conv1.weight.dtype, copy=True).requires_grad_() for v in values]
    block.zero_grad()
    y = block(x, told(temb, z))
    y.backward(dy.to(y.dtype))
    return [y, *(t.grad for t in (*leaves, *block.parameters()) if t.grad is not None)]

def conditioned(block, has):
    return lambda temb, z: blocks.Conditioning(blocks.project(temb, [block.time_emb_proj]), [z] if has else None)

torch.manual_seed(0)
count = 0
changes = [{}, {"out_channels": 12}, {"up": True}, {"down": True}, {"out_channels": 16, "output_scale_factor": 2.0}]
for change in changes:
    for kind in ("default", "scale_shift"):
        own = ResnetBlock2D(in_channels=8, temb_channels=6, groups=4, eps=0.1, time_embedding_norm=kind, **change)
        with torch.no_grad():
            for p in own.parameters():
                p.add_(0.3 * torch.randn(p.shape))
        ours, exact = copy.deepcopy(own), copy.deepcopy(own).double()
        blocks.adopt(ours)
        values = [torch.randn(3, 8, 6, 6), torch.randn(3, 6), torch.randn(3, 2 * own.out_channels)]
        dy = torch.randn_like(own(*values[:2]))
        for has in (False, True):
            runtime.runs_triton = lambda x: False
            if has:
                blocks.adopt(exact)  # diffusers' own code knows no z
            theirs = results(exact, values, dy, conditioned(exact, has) if has else lambda temb, z: temb)
            runtime.runs_triton = lambda x: True
            for mine, other in zip(results(ours, values, dy, conditioned(ours, has)), theirs, strict=True):
                assert (mine - other).norm() < 1e-4 * other.norm(), (change, kind, has)
                count += 1
dm = DiffusionModel.create(params.Unet((8, 16), 1, (4,), 4, 0.0), 8)
decoder = Decoder(dm.unet, 5)
with torch.no_grad():
    for p in [*dm.parameters(), *decoder.parameters()]:
        p.add_(0.1 * torch.randn(p.shape))
x, z, t = torch.randn(2, 3, 8, 8), torch.randn(2, 5), torch.tensor([3, 500])
found = []
dm.requires_grad_(False)
for triton in (False, True):
    runtime.runs_triton = lambda x: triton
    decoder.zero_grad()
    given = x.clone().requires_grad_()
    trunk, noise = dm(given, t)
    y = decoder(z, trunk)
    (noise.square().sum() + y.square().sum()).backward()
    found.append([noise, y, given.grad, *(p.grad.clone() for p in decoder.parameters() if p.grad is not None)])
for mine, other in zip(*found, strict=True):
    assert (mine - other).norm() < 1e-5 + 1e-5 * other.norm()
    count += 1
print("checked", count)
"""


def interpreted(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton does not exist on this platform"
)


@needs_triton
def test_kernels_are_the_operations_that_they_stand_for() -> None:
    done = interpreted(CHECK)
    assert done.stdout.strip() == "checked 537", done.stderr


@needs_triton
def test_residual_blocks_on_kernels_are_diffusers_own_and_those_with_z_the_plain_operations() -> None:
    done = interpreted(BLOCKS)
    assert done.stdout.strip() == "checked 407", done.stderr
