"""Training steps on a GPU: this engine against a plain eager loop, at the sizes of presets cifar-gpu and thesis.

The plain side is a straight PyTorch loop over the same networks: images on the GPU, bf16 autocast, channels-last, fused
optimisers, PyTorch's own kernels, one call after the other. Both take random images. Rows are ``gpu_<size>_<what>``;
with ``--compiled``, which takes two minutes more, ``gpu_<size>_<what>_compiled`` compares the engine with compiled
networks to the engine without. All rows go to docs/measured/gpu/benchmarks.csv, and the table is printed last:

    python -m tests.benchmarks.bench_gpu [--compiled]
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from diffsiam import params, runtime
from diffsiam.models.unet import DiffusionModel
from diffsiam.training import diffsiam as segmented
from diffsiam.training import diffusion, methods, representation
from diffsiam.training.inputs import Inputs
from diffsiam.training.step import Average, Step, averaging_decay

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "measured" / "gpu" / "benchmarks.csv"
SIZES = ("thesis", "cifar-gpu")
WHATS = ("diffsiam_hier", "simsiam", "diffusion", "pdae")
# The published network that the thesis fetches; the preset names where it is, not how wide
PUBLISHED = params.Unet((128, 256, 256, 256), 2, (16,), 32, 0.1)
SECONDS = 1.0  # of each timing
IMAGES = 4096


@dataclasses.dataclass
class Case:
    """One size of one training: what both sides share."""

    size: str
    what: str
    device: torch.device
    batch_size: int = 128

    def __post_init__(self) -> None:
        raw = params.read(str(ROOT / f"workflow/presets/{self.size}.yaml"))
        self.rt = dataclasses.replace(params.section(raw, params.Runtime), device=self.device.type, compile=False)
        runtime.select_device(self.rt)
        self.dtype = runtime.compute_dtype(
            self.rt, self.device, max(params.section(raw, params.Diffusion).unet.channels)
        )
        self.dm_cfg = params.section(raw, params.Diffusion)
        self.cfg = params.section(raw, params.Representation)
        self.unet = self.dm_cfg.unet if self.size != "thesis" else PUBLISHED
        g = runtime.generator(0, "images", 0, self.device)
        self.images = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8, device=self.device, generator=g)

    def build(self) -> tuple[nn.Module, dict[str, nn.Module], Callable[[Inputs], Any], Callable[..., Any], Any]:
        """Module, its averaged parts, batch function, optimisers, and the frozen network or None."""
        torch.manual_seed(0)
        dm = DiffusionModel.create(self.unet, 32)
        if self.what == "diffusion":
            module = diffusion.NoisePrediction(dm)
            batch, optimizers = diffusion.make_batch(self.dm_cfg, self.device), self.dm_cfg
            return self._placed(module), {"model": dm}, batch, lambda m: diffusion.make_optimizers(m, optimizers), None
        method = methods.METHODS[self.what]
        frozen = None
        if method.diffusion:
            frozen = self._placed(dm.eval().requires_grad_(False)).hold(self.dtype)
        learner = self._placed(segmented.Learner(method, self.cfg, 32, frozen)).train()
        averaged = {"encoder": learner.encoder} | ({"decoder": learner.decoder} if learner.decoder else {})
        batch = segmented.make_batch(method, self.cfg, frozen, self.device)
        return learner, averaged, batch, lambda m: representation.make_optimizers(m, self.cfg), frozen

    def _placed(self, module: Any) -> Any:
        return module.to(self.device).to(memory_format=torch.channels_last)

    def inputs(self) -> Inputs:
        purposes = ["view1", "view2", "noise", "diffusion"]
        return Inputs(self.images, self.batch_size, 0, self.device, purposes=purposes)

    @property
    def clip(self) -> float | None:
        return self.dm_cfg.grad_clip if self.what == "diffusion" else self.cfg.grad_clip

    def engine(self, *, compiled: bool = False) -> tuple[Callable[[], None], Callable[[], None]]:
        """A step as the training loop takes it, and the same uncaptured, for counting."""
        module, averaged, batch, optimizers, frozen = self.build()
        if compiled:
            module.compile()
            if frozen is not None:
                frozen.compile()
        step = Step(
            module, module, batch, self.inputs(), optimizers(module), {k: Average(v) for k, v in averaged.items()},
            ema_decay=0.9999, grad_clip=self.clip, dtype=self.dtype, compiled=compiled,
        )  # fmt: skip
        if self.device.type == "cuda":
            step.capture()
        number = itertools.count()

        def one() -> None:
            step.load(next(number))
            step.take()

        return one, step.run

    def plain(self) -> Callable[[], None]:
        """The straight loop."""
        module, averaged, batch, optimizers, _ = self.build()
        inputs, number = self.inputs(), itertools.count()
        scheduled = optimizers(module)
        means = [{n: p.detach().clone() for n, p in part.named_parameters()} for part in averaged.values()]

        def one() -> None:
            step = next(number)
            inputs.load(step)
            with torch.no_grad(), self.autocast():
                made = batch(inputs)
            with self.autocast():
                loss = module(made)["loss"]
            for optimizer, rate in scheduled:
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
            loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), self.clip)
            for optimizer, _ in scheduled:
                optimizer.step()
            decay = averaging_decay(step, 0.9999)
            with torch.no_grad():
                for mean, part in zip(means, averaged.values(), strict=True):
                    torch._foreach_lerp_(list(mean.values()), list(part.parameters()), 1 - decay)

        return one

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


@contextmanager
def operations() -> Iterator[None]:
    """PyTorch's own operations in place of our kernels."""
    kept, runtime.runs_triton = runtime.runs_triton, lambda x: False  # type: ignore[assignment]
    try:
        yield
    finally:
        runtime.runs_triton = kept


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_per_step(step: Callable[[], None], device: torch.device) -> float:
    """Median of five timings after a warm-up."""
    for _ in range(3):
        step()
    wait(device)
    began = time.perf_counter()
    step()
    wait(device)
    count = max(1, int(SECONDS / 5 / (time.perf_counter() - began)))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait(device)
        times.append((time.perf_counter() - began) / count)
    return sorted(times)[2]


def tflop(step: Callable[[], None]) -> float:
    """TFLOP of the convolutions and matrix products of a step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e12


def matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a bf16 matrix product."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_per_step(lambda: a @ b, device) / 1e12  # type: ignore[arg-type, return-value]


def fresh(device: torch.device) -> None:
    """Give back what the case before held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(size: str, what: str, device: torch.device, peak: float) -> dict[str, object]:
    """A row: this engine against the plain loop."""
    case = Case(size, what, device)
    fresh(device)
    one, eager = case.engine()
    ours = seconds_per_step(one, device)
    memory = torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else 0.0
    work = tflop(eager)
    del one, eager
    fresh(device)
    with operations():
        reference = seconds_per_step(case.plain(), device)
    return row(
        f"gpu_{size}_{what}",
        ours,
        reference,
        work / ours / peak,
        f"{1 / ours:.1f} steps/s against {1 / reference:.1f} of a plain eager loop; {work:.3f} TFLOP a step, "
        f"{work / ours:.0f} of {peak:.0f} TFLOP/s; {memory:.1f} GiB",
    )


def compiled(size: str, what: str, device: torch.device, plain: dict[str, Any]) -> dict[str, object]:
    """A row: compiled networks against the engine without, as `measure` found it."""
    reference = plain["ours_seconds"]
    fresh(device)
    began = time.perf_counter()
    one, _ = Case(size, what, device).engine(compiled=True)
    took = time.perf_counter() - began
    ours = seconds_per_step(one, device)
    gain = reference - ours
    pays = f"pays from {took / gain:.0f} steps on" if gain > 0 else "never pays"
    note = f"{1 / ours:.1f} steps/s against {1 / reference:.1f} not compiled; compiling took {took:.0f} s and {pays}"
    return row(f"gpu_{size}_{what}_compiled", ours, reference, plain["share_of_peak"] * reference / ours, note)


def row(name: str, ours: float, reference: float, share: float, note: str) -> dict[str, object]:
    made: dict[str, object] = {
        "name": name, "ours_seconds": ours, "reference_seconds": reference, "ratio": reference / ours, "note": note,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "torch": torch.__version__,
        "share_of_peak": share,
    }  # fmt: skip
    print(f"{name}: {reference / ours:.2f} ({note})", flush=True)
    return made


def main() -> int:
    """Measure everything, row by row; each is written as soon as it is there."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured", file=sys.stderr)
        return 0
    device, rows = torch.device("cuda"), []
    peak = matrix_rate(device)

    def keep(row: dict[str, object]) -> None:
        rows.append(row)
        with runtime.atomic(OUT) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.6g")

    for what, size in itertools.product(WHATS, SIZES):
        keep(measure(size, what, device, peak))
    if "--compiled" in sys.argv[1:]:
        keep(compiled("thesis", "diffsiam_hier", device, rows[0]))
    table = pd.DataFrame(rows)
    print(table.drop(columns=["note", "device", "torch"]).to_string(index=False))
    print(f"{rows[0]['device']}, torch {torch.__version__}, {peak:.0f} TFLOP/s of a bf16 matrix product")
    return 0


if __name__ == "__main__":
    sys.exit(main())
