"""What is captured on a GPU gives what plain calls give there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from diffsiam import graph, params, runtime
from diffsiam.data import augment, colour
from diffsiam.generation import measure
from diffsiam.models import batch_norm, group_norm
from diffsiam.training import diffusion, representation
from diffsiam.training.inputs import Inputs
from diffsiam.training.methods import METHODS
from tests.generation import tiny_guided
from tests.training import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: there are no graphs")
GPU = torch.device("cuda")
TRAINED = [name for name, method in METHODS.items() if method.trained]


@pytest.fixture(autouse=True)
def float32_is_float32() -> None:
    runtime.select_device(tiny.section(params.Runtime, device="cuda"))


def test_a_replay_draws_what_a_plain_call_draws_bit_for_bit() -> None:
    images = torch.from_numpy(tiny.images())
    purposes = ["view1", "view2", "noise"]
    captured, plain = (Inputs(images, 8, 3, GPU, purposes=purposes) for _ in range(2))
    views = tiny.section(params.Representation).views

    def draws(inputs: Inputs) -> list[Tensor]:
        drawn = augment.draw(8, tiny.SIDE, views, inputs.generators["view1"], inputs.generators["view2"])
        g = inputs.generators["noise"]
        noise = [torch.randn(8, 3, generator=g, device=GPU), torch.randint(1, 1000, (8,), generator=g, device=GPU)]
        return [inputs.images(), *drawn[:5], *noise]

    captured.load(0)
    replay = graph.capture(lambda: draws(captured), list(captured.generators.values()))
    for step in (0, 1, 7, 1):
        captured.load(step)
        plain.load(step)
        got = [t.clone() for t in replay()]
        assert all(torch.equal(a, b) for a, b in zip(got, draws(plain), strict=True)), step


def history(train: Any, out: Path, graph: bool, top: Path) -> pd.DataFrame:
    rt = tiny.section(params.Runtime, device="cuda", precision="fp32", graph=graph, deterministic=True)
    train(rt, out, out.with_suffix(".pt"))
    return pd.read_csv(out / "history.csv").drop(columns="images_per_second")


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", TRAINED)
def test_a_captured_training_follows_the_plain_one_to_rounding(name: str, clip: float | None, tmp_path: Path) -> None:
    data, dm = tiny.data(tmp_path / "data"), tiny.saved_diffusion_model(tmp_path / "dm")
    slow = {"name": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 0.0, "schedule": "cosine"}
    settings = {"optimizer": slow, "decoder_optimizer": slow, "diffusion_weight": 1.0, "encoder_width": 4}
    cfg = tiny.representation_of(name, grad_clip=clip, steps=12, **settings)

    def train(rt: params.Runtime, out: Path, checkpoint: Path) -> None:
        representation.run(name, cfg, rt, data, dm, out, checkpoint, seed=0)

    replayed, eager = (history(train, tmp_path / str(graph), graph, tmp_path) for graph in (True, False))
    pd.testing.assert_frame_equal(replayed, eager, rtol=1e-4, atol=1e-5)
    record = runtime.read_json(tmp_path / "True" / "config.json")
    assert record["params"]["runtime"]["graph"] is True


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_captured_pretraining_follows_the_plain_one_to_rounding(dropout: float, tmp_path: Path) -> None:
    data = tiny.data(tmp_path / "data")
    cfg = tiny.section(params.Diffusion, steps=12, unet={"dropout": dropout})

    def train(rt: params.Runtime, out: Path, checkpoint: Path) -> None:
        diffusion.run(cfg, rt, data, out, checkpoint, tmp_path)

    replayed, eager = (history(train, tmp_path / str(graph), graph, tmp_path) for graph in (True, False))
    pd.testing.assert_frame_equal(replayed, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [32, 64, 100, 128])
def test_the_colour_kernel_is_the_operations(side: int) -> None:
    views = params.Views((0.2, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 512)
    drawn = augment.draw(32, side, views, runtime.generator(0, "view", 0, GPU))
    x = torch.rand(32, 3, side, side, device=GPU, generator=runtime.generator(0, "x", 0, GPU))
    rounds = colour._by_rounds(x, drawn.jitter, drawn.order)
    expected = torch.where(drawn.grey.view(-1, 1, 1, 1), colour._grey(rounds), rounds)
    assert torch.allclose(colour.jitter(x, drawn.jitter, drawn.order, drawn.grey), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "groups", "side"), [(128, 32, 32), (384, 32, 32), (512, 32, 4), (96, 8, 16), (192, 8, 8), (32, 8, 32)]
)
def test_the_norm_kernel_and_its_gradients_are_those_of_float64(
    channels: int, groups: int, side: int, dtype: torch.dtype
) -> None:
    g = runtime.generator(0, "norm", 0, GPU)
    norm = nn.GroupNorm(groups, channels).to(GPU)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(torch.randn(p.shape, generator=g, device=GPU))
    x = 3 + torch.randn(4, channels, side, side, generator=g, device=GPU)
    widths = [channels, 2 * channels, 2 * channels]
    flat = [torch.randn(channels, generator=g, device=GPU)]
    flat += [torch.randn(4, width, generator=g, device=GPU) for width in widths]
    dy = torch.randn(x.shape, generator=g, device=GPU)
    results = []
    for kind in (dtype, torch.float64):
        own = nn.GroupNorm(groups, channels).to(GPU, torch.float64 if kind == torch.float64 else torch.float32)
        own.load_state_dict(norm.state_dict())
        leaves = [t.detach().to(dtype).to(kind).requires_grad_() for t in (x, *flat)]
        with pytest.MonkeyPatch.context() as patch:
            if kind == torch.float64:
                patch.setattr(runtime, "runs_triton", lambda x: False)
            y = group_norm.norm_silu(leaves[0], own, bias=leaves[1], added=leaves[2], modulations=leaves[3:])
        assert y.dtype == kind
        y.backward(dy.to(dtype).to(kind))
        results.append([y, *(t.grad for t in (*leaves, *own.parameters()))])
    bound = 2e-5 if dtype == torch.float32 else 2e-2
    for got, exact in zip(*results, strict=True):
        assert float((got.double() - exact).norm() / exact.norm()) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_shortcut", [False, True])
@pytest.mark.parametrize(("shape", "views"), [((96, 64, 32, 32), 3), ((64, 512, 4, 4), 2), ((30, 20, 7, 7), 3)])
def test_the_kernels_of_batch_norm_are_a_pass_of_float64_for_each_view(
    shape: tuple[int, ...], views: int, has_shortcut: bool, dtype: torch.dtype
) -> None:
    g = runtime.generator(0, "norm", 0, GPU)
    x, shortcut, dy = (torch.randn(shape, generator=g, device=GPU, dtype=torch.float32).to(dtype) for _ in range(3))
    x += torch.arange(views, device=GPU).repeat_interleave(len(x) // views).view(-1, 1, 1, 1)
    norm, exact = (nn.BatchNorm2d(shape[1]).to(GPU, kind) for kind in (torch.float32, torch.float64))
    leaves = [[t.to(kind, copy=True).requires_grad_() for t in (x, shortcut)] for kind in (dtype, torch.float64)]
    y = batch_norm.norm_relu(leaves[0][0], norm, leaves[0][1] if has_shortcut else None, views=views)
    passes = [
        (exact(own) + has_shortcut * added).relu()
        for own, added in zip(*(leaf.chunk(views) for leaf in leaves[1]), strict=True)
    ]
    expected = torch.cat(passes)
    y.backward(dy)
    expected.backward(dy.double())
    pairs = [(y, expected), (leaves[0][0].grad, leaves[1][0].grad), *zip(norm.buffers(), exact.buffers(), strict=True)]
    pairs += [(leaves[0][1].grad, leaves[1][1].grad)] * has_shortcut
    pairs += [(p.grad, q.grad) for p, q in zip(norm.parameters(), exact.parameters(), strict=True)]
    bound = 2e-3 if dtype == torch.float32 else 2e-2  # a ReLU may cut one of a million numbers and not its twin
    for got, reference in pairs:
        assert float((got.double() - reference.double()).norm() / reference.double().norm()) < bound


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_sampling_and_inversion_by_replays_are_the_plain_ones(solver: str) -> None:
    x0 = tiny_guided.images(9)  # a batch of seven and one of two
    plain, captured = (tiny_guided.model(device="cuda", captured=c, solver=solver) for c in (False, True))
    z, x_T = plain.latents(x0)
    again, replayed_T = captured.latents(x0)
    assert torch.allclose(again, z, atol=1e-6)
    assert torch.allclose(replayed_T, x_T, rtol=1e-4, atol=1e-4)
    for given in (z, None):
        assert torch.allclose(captured.sample(x_T, given), plain.sample(x_T, given), rtol=1e-4, atol=1e-4)
    assert len(captured._evaluate._captured) == 4  # two sizes, with z and without


def test_a_captured_classifier_is_the_plain_one() -> None:
    images = torch.from_numpy(tiny.images())
    labels = (images.float().mean(dim=(1, 2))[:, :2] > 127).numpy().astype("uint8")
    cfg = params.PixelClassifier(2, 30, 8, 0.01, 0)
    nets = [measure.train(images, labels, cfg, GPU, captured=captured) for captured in (False, True)]
    plain, replayed = (net.probabilities(images, GPU) for net in nets)
    assert torch.allclose(replayed, plain, atol=1e-3)
