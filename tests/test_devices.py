"""Every device that this machine has computes what the CPU computes in float64, and the same bits twice."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from diffsiam import params, runtime
from diffsiam.data import augment
from diffsiam.evaluation import features
from diffsiam.models.encoder import Encoder
from diffsiam.training import diffsiam as segmented
from diffsiam.training import diffusion, representation
from diffsiam.training.inputs import Inputs
from diffsiam.training.methods import METHODS
from tests.generation import tiny_guided
from tests.training import tiny

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TRAINED = [name for name, method in METHODS.items() if method.trained]
pytestmark = pytest.mark.parametrize("device", DEVICES)


@contextmanager
def in_float64() -> Iterator[None]:
    """Networks leave autocast by `Tensor.float`, where the reference shall keep its precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


@pytest.fixture(autouse=True)
def settings_come_back() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def runtime_on(device: str, **changes: Any) -> params.Runtime:
    rt = tiny.section(params.Runtime, device=device, **changes)
    runtime.select_device(rt)
    return rt


def moved(tree: Any, to: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """A batch on another device, its floats in another precision."""
    if isinstance(tree, dict):
        return {key: moved(value, to, dtype) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [moved(value, to, dtype) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if isinstance(tree, Tensor):
        return tree.to(to, dtype if tree.is_floating_point() else None)
    return tree


def apart(got: Tensor, expected: Tensor) -> float:
    """Relative distance of two tensors."""
    return float((got.detach().cpu().double() - expected).norm() / expected.norm().clamp_min(1e-12))


# ------------------------------------------------------------------------------------------------- single steps
def test_views_are_those_of_the_cpu_in_float64(device: str) -> None:
    runtime_on(device)
    views = dataclasses.replace(tiny.section(params.Representation).views, blur_from=1)
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn = augment.draw(64, 32, views, runtime.generator(0, "view"))
    expected = augment.apply(x.double(), moved(drawn, "cpu", torch.float64))
    got = augment.apply(x.to(device), moved(drawn, device))
    assert got.device.type == device
    assert apart(got, expected) < 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_gradients_are_those_of_the_cpu_in_float64(name: str, device: str) -> None:
    """tf32, the default of a GPU's convolutions, would be some 1e-3 away."""
    runtime_on(device)
    cfg, dm = tiny.representation_of(name, encoder_width=2), tiny.diffusion_model()
    torch.manual_seed(1)
    task = representation.make_task(name, cfg, torch.from_numpy(tiny.images()), dm, torch.device("cpu"))
    learner = task.module.train()
    for p in task.averaged["decoder"].parameters() if "decoder" in task.averaged else ():
        nn.init.normal_(p, std=0.2)
    exact, frozen = copy.deepcopy(learner).double(), copy.deepcopy(dm).double()

    with torch.no_grad():
        batch = task.batch(tiny.given(0, 6))
    x0 = batch["x0"]
    loss = learner.to(device)(moved(batch, device))["loss"]
    with in_float64():
        reference = exact(moved(batch, "cpu", torch.float64))["loss"]
    assert loss.device.type == device
    assert loss.item() == pytest.approx(reference.item(), rel=1e-4)
    loss.backward()
    reference.backward()
    got, expected = (nn.utils.parameters_to_vector([p.grad for p in m.parameters()]) for m in (learner, exact))
    assert apart(got, expected) < 1e-4

    t = torch.full((6,), 500)
    alone = dm.to(device).predict_noise(x0.to(device), t.to(device))
    with in_float64():
        assert apart(alone, frozen.predict_noise(x0.double(), t)) < 1e-5


def test_what_a_step_draws_lies_on_the_device(device: str) -> None:
    cfg, dm = tiny.section(params.Representation), tiny.diffusion_model().to(device)
    make = segmented.make_batch(METHODS["diffsiam_hier"], cfg, dm, torch.device(device))
    with torch.no_grad():
        batch, again = make(tiny.given(3, 6, device=device)), make(tiny.given(3, 6, device=device))
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    assert len(tensors) > 5
    assert {value.device.type for value in tensors.values()} == {device}
    assert all(torch.equal(value, again[key]) for key, value in tensors.items())


def test_features_are_those_of_the_cpu_in_float64(device: str) -> None:
    runtime_on(device)
    torch.manual_seed(0)
    encoder = Encoder(8, 32).eval()
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad(), in_float64():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
        expected = copy.deepcopy(encoder).double()(x)
    got = features.extract(encoder.to(device), images, 16, torch.device(device))
    assert got.dtype == np.float32
    assert apart(torch.from_numpy(got), expected) < 1e-5


def test_inverted_and_sampled_images_are_those_of_the_cpu_in_float64(device: str) -> None:
    runtime_on(device)
    model, x0 = tiny_guided.model(device=device), tiny_guided.images(9)
    with in_float64():
        exact = tiny_guided.model(dtype=torch.float64)
        z, x_T = exact.latents(x0.double())
        images = exact.sample(x_T, z)
    got_z, got_x_T = model.latents(x0)
    assert apart(got_z, z) < 1e-5
    assert apart(got_x_T, x_T) < 1e-4
    assert apart(model.sample(x_T.to(torch.float32), z.to(torch.float32)), images) < 1e-4


# ---------------------------------------------------------------------------------------------------- trainings
def train(name: str, device: str, out: Path, dm: Path, data: Path, **changes: Any) -> None:
    rt = runtime_on(device, deterministic=True, **changes)
    cfg = tiny.section(params.Representation)
    representation.run(name, cfg, rt, data, dm, out, out.with_suffix(".pt"), seed=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_and_resumed_training_ends_with_the_bits_of_a_whole_one(
    precision: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, dm = tiny.data(tmp_path / "data"), tiny.saved_diffusion_model(tmp_path / "dm")
    for out in ("whole", "again"):
        train("diffsiam_hier", device, tmp_path / out, dm, data, precision=precision)
    with monkeypatch.context() as patch:
        load = Inputs.load

        def stopping(self: Inputs, step: int) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            load(self, step)

        patch.setattr(Inputs, "load", stopping)
        with pytest.raises(SystemExit):
            train("diffsiam_hier", device, tmp_path / "stopped", dm, data, precision=precision)
    train("diffsiam_hier", device, tmp_path / "stopped", dm, data, precision=precision)
    whole = tiny.files_of(tmp_path / "whole")
    assert len(whole) == 5
    assert tiny.files_of(tmp_path / "again") == whole
    assert tiny.files_of(tmp_path / "stopped") == whole
    record = runtime.read_json(tmp_path / "stopped" / "config.json")
    assert torch.device(record["device"]).type == device
    assert record["precision"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]


def test_pretraining_in_bf16_follows_float32(device: str, tmp_path: Path) -> None:
    data, losses = tiny.data(tmp_path / "data"), {}
    for precision in ("fp32", "bf16"):
        rt, out = runtime_on(device, precision=precision), tmp_path / precision
        diffusion.run(tiny.section(params.Diffusion, steps=20), rt, data, out, out.with_suffix(".pt"), tmp_path)
        losses[precision] = pd.read_csv(out / "history.csv")["loss"]
    assert losses["bf16"].tolist() == pytest.approx(losses["fp32"].tolist(), rel=0.02)
    assert losses["bf16"].tolist() != losses["fp32"].tolist()
    assert losses["fp32"].iloc[-5:].mean() < losses["fp32"].iloc[:5].mean()
