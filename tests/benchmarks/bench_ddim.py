"""Inversion and sampling at the size of the preset demo, conditioned on z, x0_hat clipped as the demo does.

The models are trained here, for as long as the demo trains them: round-trip errors of random weights mean nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffsiam import params, runtime
from diffsiam.data import pixels, prepare
from diffsiam.generation import model as guided
from diffsiam.training import diffusion, representation
from tests.benchmarks.common import THREADS, seconds

DEMO = Path(__file__).resolve().parents[2] / "workflow" / "presets" / "demo.yaml"
IMAGES, STEPS, REPEATS = 16, 100, 3
FEWER = (10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 125, 150, 175, 200)  # steps that the second order may take


def trained() -> tuple[guided.Guided, Tensor]:
    """The demo's diffsiam_hier on sprites, and 16 of their test images."""
    raw = params.read(str(DEMO), f'{{"runtime": {{"device": "cpu", "threads": {THREADS}}}}}')
    rt, cfg = params.section(raw, params.Runtime), params.section(raw, params.Generation)
    with tempfile.TemporaryDirectory() as folder:
        data, dm, out = (Path(folder) / name for name in ("data", "diffusion", "representation"))
        prepare.run("sprites", params.section(raw, params.Data), data)
        diffusion.run(params.section(raw, params.Diffusion), rt, data, dm, Path(folder) / "dm.pt", Path(folder))
        section = params.section(raw, params.Representation)
        representation.run("diffsiam_hier", section, rt, data, dm, out, Path(folder) / "encoder.pt", seed=0)
        model = guided.load(out, dm, dataclasses.replace(cfg, solver="ddim", steps=STEPS, batch_size=IMAGES), "cpu")
        images = np.load(data / "images_test.npy")
    chosen = runtime.rng(0, "bench").choice(len(images), IMAGES, replace=False)
    return model, pixels.to_float(torch.from_numpy(images[chosen]))


def batch16() -> list[dict[str, object]]:
    """16 images in one batch against 16 runs of one."""
    model, x0 = trained()
    z, x_T = model.latents(x0)

    def single() -> None:
        for i in range(IMAGES):
            model.sample(x_T[i : i + 1], z[i : i + 1])

    together = [seconds(lambda: model.sample(x_T, z)) for _ in range(REPEATS)]
    a, b = statistics.median(together), seconds(single)
    note = f"{STEPS} steps of DDIM, {IMAGES} images of {x0.shape[-1]}x{x0.shape[-1]}, {THREADS} threads: {a:.2f} s"
    return [{"name": "ddim_batch16", "ours_seconds": a, "reference_seconds": b, "ratio": b / a, "note": note}]


def solver() -> list[dict[str, object]]:
    """Inversion and sampling by DDIM against the fewest steps of the second-order solver with no larger error."""
    model, x0 = trained()
    z = model.encode(x0)

    def round_trip(solver: str, steps: int) -> Tensor:
        model.cfg = dataclasses.replace(model.cfg, solver=solver, steps=steps)
        return model.sample(model.invert(x0, z), z)

    def error(solver: str, steps: int) -> float:
        return float((round_trip(solver, steps) - x0).square().mean())

    allowed = error("ddim", STEPS)
    steps = next(number for number in FEWER if error("dpmpp", number) <= allowed)
    turns = [  # in turns, so that what else the machine does falls on both
        (seconds(lambda: round_trip("dpmpp", steps)), seconds(lambda: round_trip("ddim", STEPS)))
        for _ in range(REPEATS)
    ]
    a, b = (statistics.median(side) for side in zip(*turns, strict=True))
    note = (
        f"round trip of {IMAGES} images, {THREADS} threads: DDIM {STEPS} steps, MSE {allowed:.1e}; "
        f"DPM-Solver++ {steps}, {error('dpmpp', steps):.1e}"
    )
    return [{"name": "ddim_solver", "ours_seconds": a, "reference_seconds": b, "ratio": b / a, "note": note}]


BENCHES: dict[str, Callable[[], list[dict[str, object]]]] = {"ddim_batch16": batch16, "ddim_solver": solver}
