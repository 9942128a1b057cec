"""Training steps at the size of the preset cifar-cpu against the same steps written plainly.

The plain side is what one writes first: float32 in PyTorch's default memory layout, torch.optim with its defaults, an
average kept parameter by parameter, and torchvision's transforms on one PIL image at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from diffsiam import params, runtime
from diffsiam.data import augment, pixels
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.models.unet import DiffusionModel
from diffsiam.training import diffsiam as segmented
from diffsiam.training import diffusion, methods, representation
from diffsiam.training.inputs import Inputs
from diffsiam.training.step import Average, Step

ROOT = Path(__file__).resolve().parents[2]
IMAGES = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
REPEATS = 5


class Setting:
    """Parameters, networks and images that both sides share."""

    def __init__(self) -> None:
        raw = params.read(str(ROOT / "workflow/presets/cifar-cpu.yaml"))
        self.rt = params.section(raw, params.Runtime)
        self.diffusion = params.section(raw, params.Diffusion)
        self.representation = params.section(raw, params.Representation)
        self.device = runtime.select_device(self.rt)
        self.dtype = runtime.compute_dtype(
            self.rt, self.device, max(params.section(raw, params.Diffusion).unet.channels)
        )
        torch.manual_seed(0)
        self.dm = DiffusionModel.create(self.diffusion.unet, 32)
        self.batch_size = self.representation.batch_size
        self.indices = torch.arange(self.batch_size)

    def ours(
        self,
        module: nn.Module,
        averaged: dict[str, nn.Module],
        batch: Callable,
        optimizers: Callable,
        images: np.ndarray = IMAGES,
    ) -> Callable:
        """One step of the training loop itself."""
        module.to(memory_format=torch.channels_last).train()
        inputs = Inputs(
            torch.from_numpy(images), self.batch_size, 0, self.device, purposes=["view1", "view2", "noise", "diffusion"]
        )
        averages = {name: Average(part) for name, part in averaged.items()}
        step = Step(
            module, module, batch, inputs, optimizers(module), averages,
            ema_decay=0.9999, grad_clip=1.0, dtype=self.dtype,
        )  # fmt: skip
        number = itertools.count()

        def one() -> None:
            step.load(next(number))
            step.run()

        return one


class PlainAverage:
    """Parameter by parameter."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.state = module, {k: v.clone() for k, v in module.state_dict().items()}

    def update(self) -> None:
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.state[name].mul_(0.999).add_(value, alpha=0.001)


def alternate(ours: Callable, reference: Callable, repeats: int = REPEATS) -> tuple[float, float]:
    """Median seconds of both, taking turns after one warm-up each."""
    times: dict[Callable, list[float]] = {ours: [], reference: []}
    ours(), reference()
    for _, side in itertools.product(range(repeats), times):
        began = time.perf_counter()
        side()
        times[side].append(time.perf_counter() - began)
    return statistics.median(times[ours]), statistics.median(times[reference])


def convolution_peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a 128-channel 3x3 convolution in ``dtype``, forward and backward, as the cores do it best here."""
    conv = nn.Conv2d(128, 128, 3, padding=1, dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.randn(32, 128, 32, 32, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()

    def step() -> None:
        y = conv(x)
        y.backward(y.detach())

    seconds, _ = alternate(step, lambda: None)
    return 3 * 2 * 32 * 32 * 32 * 128 * 128 * 9 / seconds / 1e9


def flops(step: Callable) -> float:
    """GFLOP of convolutions and matrix products in one step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def row(name: str, ours: float, reference: float, note: str) -> dict[str, object]:
    return {"name": name, "ours_seconds": ours, "reference_seconds": reference, "ratio": reference / ours, "note": note}


def share(step: Callable, seconds: float, dtype: torch.dtype) -> str:
    work, peak = flops(step), convolution_peak(dtype)
    rate, name = work / seconds, str(dtype).removeprefix("torch.")
    return f"{rate:.0f} of the {peak:.0f} GFLOP/s of a 128-channel 3x3 convolution in {name} ({rate / peak:.0%})"


def dm_step() -> list[dict[str, object]]:
    """Pretraining of the diffusion model."""
    s = Setting()
    table, images = Schedule(), torch.from_numpy(IMAGES)

    def noised(x0: Tensor) -> dict[str, Tensor]:
        t = torch.randint(1, TIMESTEPS + 1, (len(x0),))
        noise = torch.randn(x0.shape)
        return {"x": table.q_sample(x0, t, noise), "t": t, "noise": noise}

    ours = s.ours(
        diffusion.NoisePrediction(s.dm),
        {"model": s.dm},
        diffusion.make_batch(s.diffusion, s.device),
        lambda m: diffusion.make_optimizers(m, s.diffusion),
    )
    plain = DiffusionModel.create(s.diffusion.unet, 32).unet.train()
    optimizer, average = torch.optim.Adam(plain.parameters(), lr=2e-4), PlainAverage(plain)

    def reference() -> None:
        x0 = images[: s.batch_size].permute(0, 3, 1, 2).contiguous() / 127.5 - 1
        b = noised(x0)
        loss = (plain(b["x"], b["t"] - 1).sample - b["noise"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        average.update()

    a, b = alternate(ours, reference)
    return [row("dm_step", a, b, f"batch {s.batch_size}; {share(ours, a, s.dtype)}")]


def _views() -> Callable[[Image.Image], Tensor]:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(32, (0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )


def _representation_step(name: str) -> tuple[Callable, Callable, Setting]:
    s, method = Setting(), methods.METHODS[name]
    images = torch.from_numpy(IMAGES)
    dm = s.dm.eval().requires_grad_(False) if method.diffusion else None
    learner = segmented.Learner(method, s.representation, 32, dm)
    plain = segmented.Learner(method, s.representation, 32, dm)
    plain_dm = DiffusionModel.create(s.diffusion.unet, 32).eval().requires_grad_(False)
    averaged = {"encoder": learner.encoder} | ({"decoder": learner.decoder} if learner.decoder else {})
    batch = segmented.make_batch(method, s.representation, dm, s.device)
    s.dm.to(memory_format=torch.channels_last).hold(s.dtype)
    cfg = dataclasses.replace(s.representation, steps=10**6)
    ours = s.ours(learner, averaged, batch, lambda m: representation.make_optimizers(m, cfg))

    view, pictures, table = _views(), [Image.fromarray(x) for x in IMAGES[: s.batch_size]], Schedule()
    parts = [p for n, p in plain.named_parameters() if not n.startswith("decoder")]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(parts, 0.05, 0.9, weight_decay=5e-4)]
    if plain.decoder is not None:
        optimizers.append(torch.optim.Adam(plain.decoder.parameters(), 1e-3))
    averages = [PlainAverage(plain.encoder)] + ([PlainAverage(plain.decoder)] if plain.decoder else [])

    def reference() -> None:
        x0 = images[: s.batch_size].permute(0, 3, 1, 2).contiguous() / 127.5 - 1
        b: dict = {"x0": x0}
        for key in ("view1", "view2"):
            b[key] = torch.stack([view(picture) for picture in pictures])
        if method.diffusion:
            with torch.no_grad():
                g = torch.Generator()
                b |= segmented.diffusion_batch(plain_dm, table, method, s.representation, x0, g)
        for optimizer in optimizers:
            optimizer.zero_grad()
        plain(b)["loss"].backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for average in averages:
            average.update()

    return ours, reference, s


def simsiam_step() -> list[dict[str, object]]:
    """SimSiam, views included."""
    ours, reference, s = _representation_step("simsiam")
    a, b = alternate(ours, reference)
    x = pixels.to_float(torch.from_numpy(IMAGES[: s.batch_size]))
    views = s.representation.views

    def view_pair() -> None:
        augment.apply(x, augment.draw(len(x), 32, views, *(runtime.generator(0, "bench", k) for k in range(2))))

    view_seconds, _ = alternate(view_pair, lambda: None)
    return [
        row(
            "simsiam_step",
            a,
            b,
            f"batch {s.batch_size}; views take {view_seconds / a:.1%} of a step; {share(ours, a, s.dtype)}",
        )
    ]


def diffsiam_step() -> list[dict[str, object]]:
    """DiffSiam (hierarchical): both terms."""
    ours, reference, s = _representation_step("diffsiam_hier")
    a, b = alternate(ours, reference)
    return [row("diffsiam_step", a, b, f"batch {s.batch_size}; {share(ours, a, s.dtype)}")]


def disdiff_step() -> list[dict[str, object]]:
    """All fields of a batch in one pass, and the disentangling loss, against as many steps of PDAE as there are codes,
    with the same encoder and the same frozen model."""
    s = Setting()
    raw = params.of(params.read(str(ROOT / "workflow/presets/disdiff-cpu.yaml")), "rooms")
    cfg = params.section(raw, params.Representation)
    assert cfg.codes is not None
    dm = DiffusionModel.create(params.section(raw, params.Diffusion).unet, 16).eval().requires_grad_(False)
    s.dtype = runtime.compute_dtype(s.rt, s.device, max(raw["diffusion"]["unet"]["channels"]))
    s.batch_size, small = cfg.batch_size, np.ascontiguousarray(IMAGES[:, :16, :16])
    dm.to(memory_format=torch.channels_last).hold(s.dtype)

    def steps(name: str) -> Callable:
        task = representation.make_task(name, cfg, torch.from_numpy(small), dm, s.device)
        return s.ours(
            task.module, dict(task.averaged), task.batch, lambda m: representation.make_optimizers(m, cfg), small
        )

    ours, pdae = steps("disdiff"), steps("pdae")
    a, b = alternate(ours, pdae)
    note = f"batch {s.batch_size}, {cfg.codes.count} codes; reference: {cfg.codes.count} PDAE steps of {b:.3f} s"
    return [row("disdiff_step", a, cfg.codes.count * b, note)]


def step_overhead() -> list[dict[str, object]]:
    """A DiffSiam step against the sum of its parts timed alone."""
    ours, _, s = _representation_step("diffsiam_hier")
    method = methods.METHODS["diffsiam_hier"]
    dm = s.dm.eval().requires_grad_(False)
    learner = segmented.Learner(method, s.representation, 32, dm).to(memory_format=torch.channels_last).train()
    inputs = Inputs(torch.from_numpy(IMAGES), s.batch_size, 0, s.device, purposes=["view1", "view2", "noise"])
    inputs.load(0)
    with torch.no_grad(), torch.autocast(s.device.type, s.dtype, enabled=s.dtype != torch.float32):
        b = segmented.make_batch(method, s.representation, dm, s.device)(inputs)
    assert learner.decoder is not None
    z = torch.randn(s.batch_size, s.representation.dim)
    table = Schedule()

    autocast = torch.autocast(s.device.type, s.dtype, enabled=s.dtype != torch.float32)

    def frozen() -> None:
        with torch.no_grad(), autocast:
            g = runtime.generator(0, "bench")
            segmented.diffusion_batch(dm, table, method, s.representation, b["x0"], g)

    def decoder() -> None:
        with autocast:
            loss = learner.decoder(z, b["trunk"]).square().mean()
        loss.backward()

    def encoders() -> None:
        for key in ("x0", "view1", "view2"):
            with autocast:
                loss = learner.encoder(b[key]).square().mean()
            loss.backward()

    def parts() -> None:
        frozen(), decoder(), encoders()

    whole, alone = alternate(ours, parts)
    return [row("step_overhead", whole, alone, "reference: frozen forward, decoder and three encoder passes, alone")]


def ddp_2() -> list[dict[str, object]]:
    """Two processes of one thread against one process of two, by their own record of images per second."""
    from diffsiam.data import prepare

    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as top:
        prepare.run("sprites", params.Data("none", 32, 0.0, 0.2, 0), Path(top, "data"))
        for _, count in itertools.product(range(REPEATS), rates):
            override = f'{{"runtime": {{"threads": {2 // count}}}, "diffusion": {{"steps": 3}}}}'
            command = [sys.executable, "-m", "diffsiam.cli", "diffusion", "--data", f"{top}/data", "--out", f"{top}/dm"]
            command += ["--checkpoint", f"{top}/c", "--processes", str(count), "--params", override]
            command[-2:-2] = ["--params", str(ROOT / "workflow/presets/cifar-cpu.yaml")]
            subprocess.run(command, check=True, capture_output=True, env=os.environ, cwd=ROOT)
            history = np.genfromtxt(f"{top}/dm/history.csv", delimiter=",", names=True)
            rates[count].append(float(history["images_per_second"][1:].max()))
    one, two = (128 / statistics.median(rates[n]) for n in (1, 2))
    return [row("ddp_2", two, one, "diffusion-model steps; ours: two gloo processes of one thread each")]


BENCHES = {
    "dm_step": dm_step,
    "simsiam_step": simsiam_step,
    "diffsiam_step": diffsiam_step,
    "disdiff_step": disdiff_step,
    "step_overhead": step_overhead,
    "ddp_2": ddp_2,
}
