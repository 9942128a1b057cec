"""DisDiff where the diffusion model is exact: does its loss turn a code into factors?

125 points of R^12 are all combinations of three factors with five values each, mixed by a random rotation. Their exact
denoiser is a softmax over the points, so nothing but the loss is on trial; encoder and fields are small perceptrons.
``python -m tests.benchmarks.toy_disdiff`` trains five seeds, without the disentangling loss and with four weights
of it, and writes docs/measured/toy/disdiff.csv: FactorVAE score and DCI of each run.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffsiam import params, runtime
from diffsiam.data.grid import Grid
from diffsiam.diffusion.schedule import TIMESTEPS, Schedule
from diffsiam.evaluation import disentanglement
from diffsiam.models.codes import orthogonal
from diffsiam.training import disentangle

OUT = Path(__file__).resolve().parents[2] / "docs/measured/toy/disdiff.csv"
FACTORS, VALUES, NUMBERS = 3, 5, 4  # numbers that a value is made of
CODES, DIM, WIDTH, BATCH = 3, 8, 128, 128
LEAST_SIGNAL, RATE = 0.02, 1e-3
WEIGHTS, SEEDS, STEPS = (0.0, 0.098, 0.2, 0.245, 0.5), (0, 1, 2, 3, 4), 1500
DRAWS = params.Draws(variance=10_000, train=10_000, test=5_000, batch=64)


def points(seed: int) -> Tensor:
    """All combinations of the factors, the first slowest: (125, 12), of a variance near a half."""
    g = runtime.generator(seed, "toy/data")
    values = torch.randn(FACTORS, VALUES, NUMBERS, generator=g)
    grid = torch.cartesian_prod(*(torch.arange(VALUES) for _ in range(FACTORS)))
    mixed = torch.cat([values[f, grid[:, f]] for f in range(FACTORS)], dim=1)
    rotation, _ = torch.linalg.qr(torch.randn(mixed.shape[1], mixed.shape[1], generator=g))
    return 0.7 * (mixed - mixed.mean(0)) @ rotation / mixed.std()


class Field(nn.Module):
    """g^c(x_t, z^c, t): scale and shift by time plus code embedding, then by the code, as the decoder of images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table, self.projection = nn.Parameter(torch.randn(16, 16)), nn.Linear(16, WIDTH)
        self.time = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.code = nn.Linear(DIM, WIDTH)
        self.first, self.last = nn.Linear(size, WIDTH), nn.Linear(WIDTH, size)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.told = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(4))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """x (B, size), t (B,), z (B, N, DIM) -> (B, N, size)."""
        angle = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(16) / 16)
        p = self.projection(orthogonal(self.table)[:CODES])
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))[:, None] + p
        code, hidden = self.code(z), self.first(x)[:, None].expand(-1, CODES, -1)
        for i, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            inner = norm(hidden)
            for j, told in enumerate((time, code)):
                scale, shift = self.told[2 * i + j](functional.silu(told)).chunk(2, dim=2)
                inner = (1 + scale) * inner + shift
            hidden = hidden + layer(functional.silu(inner))
        return self.last(functional.silu(hidden))


def train(seed: int, weight: float, steps: int) -> tuple[Tensor, dict[str, float]]:
    """Codes of all points (125, N * DIM) after training, and the means of the parts over the last tenth of it."""
    torch.manual_seed(runtime.derive_seed(seed, "toy/weights"))
    data, table = points(seed), Schedule()
    size, variance = data.shape[1], float(data.var())
    encoder = nn.Sequential(
        nn.Linear(size, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, CODES * DIM),
    )  # fmt: skip
    field = Field(size)
    parameters = [*encoder.parameters(), *field.parameters()]
    optimizer = torch.optim.Adam(parameters, RATE)
    g = runtime.generator(seed, "toy/noise")
    history: list[dict[str, float]] = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        x0 = data[torch.randint(len(data), (BATCH,), generator=g)]
        t = torch.randint(1, TIMESTEPS + 1, (BATCH,), generator=g)
        noise, code = torch.randn(x0.shape, generator=g), torch.randint(CODES, (BATCH,), generator=g)
        signal, sigma, shift = (f(t)[:, :, 0, 0] for f in (table.signal, table.sigma, table.noise_shift))
        x = signal * x0 + sigma * noise
        x0_hat = exact(x, signal, sigma, data)
        predicted = (x - signal * x0_hat) / sigma
        z = encoder(x0)
        fields = field(x, t, z.unflatten(1, (CODES, DIM)))
        reconstruction = (noise - (predicted + shift * fields.sum(1))).abs().mean()
        parts = {"reconstruction": reconstruction}
        if weight:
            guided = x0_hat + sigma.square() / signal * fields[torch.arange(BATCH), code]
            with torch.no_grad():
                unguided = disentangle.frozen(encoder, x0_hat)
            seen = (z.detach(), unguided, disentangle.frozen(encoder, guided))
            of = disentangle.distances(*(c.unflatten(1, (CODES, DIM)) for c in seen))
            invariant, variant = disentangle.cross_entropies(of, code)
            gamma = weight * (x0_hat - guided).detach().square().mean(1) / variance
            gamma = gamma * (table.abar[t] >= LEAST_SIGNAL)
            parts |= {"disentangling": (gamma * (invariant + variant)).mean()}
            parts |= {"invariant": invariant.mean(), "variant": variant.mean(), "gamma": gamma.max()}
        optimizer.zero_grad()
        torch.stack([parts[key] for key in ("reconstruction", "disentangling") if key in parts]).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        history.append({key: value.item() for key, value in parts.items()})
    last = history[-max(1, steps // 10) :]
    with torch.no_grad():
        codes: Tensor = encoder.eval()(data)
    return codes, {key: float(np.mean([row[key] for row in last])) for key in last[0]}


def exact(x: Tensor, signal: Tensor, sigma: Tensor, data: Tensor) -> Tensor:
    """E[x0 | x_t] where x0 is one of the points of ``data``, each as likely."""
    squares = (x[:, None] - signal[:, None] * data).square().sum(2)
    return torch.softmax(-squares / (2 * sigma.square()), dim=1) @ data


def scores(codes: Tensor) -> dict[str, float | None]:
    """FactorVAE score and DCI of codes (125, N * DIM), one number each, and DCI of all numbers, summed by code."""
    grid = Grid(("first", "second", "third"), (VALUES,) * FACTORS)
    z = codes.numpy()
    one = disentanglement.principal(z, CODES).codes
    alone, whole = (disentanglement.importances(x, grid, DRAWS, 0, "fast").matrix for x in (one, z))
    return {
        "factorvae": disentanglement.factor_vae(one, grid, DRAWS, 0)[0],
        "dci": disentanglement.disentanglement(alone),
        "dci_block": disentanglement.disentanglement(whole.reshape(CODES, DIM, -1).sum(1)),
    }


def main() -> int:
    """Train and score every run; the table is written anew after each."""
    torch.set_num_threads(1)
    rows: list[dict[str, float | None]] = []
    for seed in SEEDS:
        for weight in WEIGHTS:
            began = time.process_time()
            codes, parts = train(seed, weight, STEPS)
            rows.append({"seed": seed, "weight": weight, **scores(codes), **parts})
            print(rows[-1], f"{time.process_time() - began:.0f} CPU-seconds", file=sys.stderr, flush=True)
            with runtime.atomic(OUT) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.4f")
    return 0


if __name__ == "__main__":
    sys.exit(main())
