"""A training step never waits for the host and never copies between devices, so that it can be captured.

No GPU is needed: the device is PyTorch's ``meta``, whose tensors have no data. Whatever asks for a value (`item`,
`tolist`, `nonzero`, a branch) raises there, and `watch` raises at every operation that two devices take part in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.optim import adam, optimizer, sgd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffsiam import params, runtime
from diffsiam.models.unet import DiffusionModel
from diffsiam.training import diffusion, inputs, representation
from diffsiam.training.inputs import Inputs
from diffsiam.training.methods import METHODS
from diffsiam.training.step import Average, Step

GPU = torch.device("meta")
BATCH = 8


class Copied(Exception):
    """Two devices took part in one operation."""


class _Operations(TorchDispatchMode):
    """Raises at operations between devices; scalars of the CPU are refused too, since a graph would freeze them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        devices = {t.device.type for t in tensors} | {
            d.type for d in (kwargs or {}).values() if type(d) is torch.device
        }
        if len(devices) > 1:
            raise Copied(f"{func} on {[(str(t.device), tuple(t.shape)) for t in tensors]}")
        return func(*args, **(kwargs or {}))


class _Made(TorchFunctionMode):
    """Raises where numbers of the host become a tensor, which the other mode does not see."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            raise Copied(f"{func.__name__} in a step")
        return func(*args, **(kwargs or {}))


@contextmanager
def watch() -> Iterator[None]:
    with _Operations(), _Made():
        yield


class Generator(torch.Generator):
    """A generator that says that it is there."""

    device = GPU


class Names:
    """Images that are no array: they are read when they are asked for."""

    shape = (tiny.IMAGES, tiny.SIDE, tiny.SIDE, 3)

    def __len__(self) -> int:
        return tiny.IMAGES

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.zeros((BATCH, *self.shape[1:]), dtype=torch.uint8, device="cpu")


@pytest.fixture(params=["kernels", "operations"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that computes nothing, with Triton and without: its generators are the CPU's, its memory takes everything,
    nothing is pinned."""
    monkeypatch.setattr(runtime, "generator", lambda seed, purpose, item, device: Generator())
    monkeypatch.setattr(runtime, "runs_triton", lambda x: request.param == "kernels" and x.device == GPU)
    monkeypatch.setattr(inputs, "_fits", lambda images, device: True)
    monkeypatch.setattr(Inputs, "_pinned", lambda self, tensor: tensor)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it does not know this device
    for module in (adam, sgd):
        monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"], raising=False)
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"], raising=False)
    kernels = torch.library.Library("aten", "IMPL", "Meta")
    for name in ("_fused_adam_.tensor_lr", "_fused_sgd_.tensor_lr"):  # they return nothing
        kernels.impl(name, lambda *args, **kwargs: None)
    with torch.device(GPU):
        yield
    kernels._destroy()


def step_of(module: nn.Module, batch: Callable[[Inputs], Any], images: Any, optimizers: Any, **changes: Any) -> Step:
    """A step on that GPU, warmed up as before a capture."""
    given = Inputs(images, BATCH, 0, GPU, purposes=["view1", "view2", "noise", "diffusion"])
    average = {"all": Average(module)}
    settings = {"ema_decay": 0.5, "grad_clip": None, "dtype": torch.float32, **changes}
    made = Step(module.train(), module, batch, given, optimizers(module), average, **settings)
    made.load(0)
    made.run()
    made.load(1)
    return made


def images_of(kind: str) -> Any:
    return torch.zeros(Names.shape, dtype=torch.uint8, device="cpu") if kind == "resident" else Names()


@pytest.mark.parametrize("kind", ["resident", "stream"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trained])
@pytest.mark.usefixtures("gpu")
def test_a_step_of_every_method_neither_waits_nor_copies(name: str, clip: float | None, kind: str) -> None:
    views = dataclasses.asdict(tiny.section(params.Representation).views) | {"blur_from": 1}
    cfg = tiny.representation_of(name, encoder_width=2, views=views)
    dm = DiffusionModel.create(tiny.section(params.Diffusion).unet, tiny.SIDE).eval().requires_grad_(False)
    images = images_of(kind)
    task = representation.make_task(name, cfg, images, dm if METHODS[name].diffusion else None, GPU)
    step = step_of(
        task.module, task.batch, images, lambda m: representation.make_optimizers(m, cfg), grad_clip=clip
    )  # fmt: skip
    with watch():
        step.run()
    assert step.sums is not None
    assert step.sums.device == GPU
    assert set(step.names) >= {"loss", "spread", "participation"} | ({"grad_norm"} if clip else set())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.usefixtures("gpu")
def test_a_step_of_the_diffusion_model_neither_waits_nor_copies(dropout: float) -> None:
    cfg = tiny.section(params.Diffusion)
    model = DiffusionModel.create(dataclasses.replace(cfg.unet, dropout=dropout), tiny.SIDE)
    step = step_of(
        diffusion.NoisePrediction(model),
        diffusion.make_batch(cfg, GPU),
        images_of("resident"),
        lambda m: diffusion.make_optimizers(m, cfg),
        grad_clip=1.0,
    )
    with watch():
        step.run()
    assert step.names == ("loss", "grad_norm")


# ------------------------------------------------------------------ what a step once did, and what this file refuses
WAITS: dict[str, Callable[[Tensor], Any]] = {
    "the order of the colours as a list": lambda x: torch.randperm(4).tolist(),
    "a value": lambda x: x.sum().item(),
    "a branch on data": lambda x: 1 if x.sum() > 0 else 0,
    "the images of one order": lambda x: (x > 0).nonzero(),
    "an array": lambda x: x.numpy(),
    "a result on the host": lambda x: x.cpu(),
}
COPIES: dict[str, Callable[[Tensor], Any]] = {
    "images gathered on the CPU": lambda x: torch.zeros(9, 3, device="cpu")[torch.arange(4, device="cpu")].to(GPU),
    "strengths of the jitter": lambda x: x * torch.tensor((0.4, 0.4, 0.1)),
    "edges of the segments": lambda x: torch.zeros(5, device="cpu").to(x.device),
    "an index on the CPU": lambda x: x[torch.zeros(2, dtype=torch.int64, device="cpu")],
    "a rate of the host's": lambda x: x * torch.zeros((), device="cpu"),
}


@pytest.mark.parametrize("what", WAITS)
@pytest.mark.usefixtures("gpu")
def test_waits_are_refused(what: str) -> None:
    x = torch.zeros(4, 3)
    with pytest.raises((RuntimeError, TypeError, Copied)), watch():  # NotImplementedError is a RuntimeError
        WAITS[what](x)


@pytest.mark.parametrize("what", COPIES)
@pytest.mark.usefixtures("gpu")
def test_copies_between_devices_are_refused(what: str) -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(Copied), watch():
        COPIES[what](x)


@pytest.mark.usefixtures("gpu")
def test_arithmetic_on_one_device_is_let_through() -> None:
    with watch():
        assert (torch.zeros(4, 3) * 2 + 1).mean().device == GPU
