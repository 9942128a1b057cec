"""DDIM and the second-order solver against the formulas as they are printed, a known solution, and diffusers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from diffsiam.diffusion import ddim
from diffsiam.diffusion.schedule import Schedule

BETAS = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
ABAR = [1.0, *itertools.accumulate((1 - b for b in BETAS), lambda a, b: a * b)]
SPREAD = 0.5  # standard deviation of the known data


@pytest.fixture(scope="module")
def table() -> Schedule:
    return Schedule()


def images(seed: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def model(x: Tensor, t: Tensor) -> Tensor:
    """Some smooth function of x and t."""
    return torch.tanh(x + x.roll(1, dims=3)) * (0.5 + t.view(-1, 1, 1, 1) / 2000)


def gaussian(x: Tensor, t: Tensor) -> Tensor:
    """The noise that is expected in x_t where the data are N(0, SPREAD^2): then DDIM's differential equation has a
    solution in closed form, x_t proportional to the standard deviation of x_t."""
    abar = torch.tensor([ABAR[i] for i in t.tolist()]).view(-1, 1, 1, 1)
    return (1 - abar).sqrt() * x / (abar * SPREAD**2 + 1 - abar)


def scale(level: int) -> float:
    return math.sqrt(ABAR[level] * SPREAD**2 + 1 - ABAR[level])


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100, 999, 1000])
def test_levels_rise_from_the_image_to_the_last_step(steps: int) -> None:
    path = ddim.levels(steps)
    assert (path[0], path[-1], len(path)) == (0, 1000, steps + 1)
    gaps = [b - a for a, b in itertools.pairwise(path)]
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1
    assert max(abs(level - i * 1000 / steps) for i, level in enumerate(path)) <= 0.5  # none is nearer


@pytest.mark.parametrize("clip", [False, True])
def test_sampling_is_the_loop_of_algorithm_2(table: Schedule, clip: bool) -> None:
    x = images(0)
    got = ddim.sample(model, x, 7, table, clip=clip)
    path = [round(i * 1000 / 7) for i in range(8)]
    for i in range(7, 0, -1):
        t, s = path[i], path[i - 1]
        noise = model(x, torch.full((3,), t))
        x0 = (x - math.sqrt(1 - ABAR[t]) * noise) / math.sqrt(ABAR[t])
        x0 = x0.clamp(-1, 1) if clip else x0
        x = math.sqrt(ABAR[s]) * x0 + math.sqrt(1 - ABAR[s]) * (x - math.sqrt(ABAR[t]) * x0) / math.sqrt(1 - ABAR[t])
    assert torch.allclose(got, x, rtol=1e-3, atol=1e-3)
    assert clip == bool((got.abs() <= 1).all())


def test_inversion_is_the_same_step_upwards_and_asks_for_step_1_at_the_image(table: Schedule) -> None:
    x = images(1)
    got = ddim.invert(model, x, 5, table)
    for t, s in ((0, 200), (200, 400), (400, 600), (600, 800), (800, 1000)):
        noise = model(x, torch.full((3,), max(t, 1)))
        x0 = (x - math.sqrt(1 - ABAR[t]) * noise) / math.sqrt(ABAR[t])
        x = math.sqrt(ABAR[s]) * x0 + math.sqrt(1 - ABAR[s]) * noise
    assert torch.allclose(got, x, rtol=1e-3, atol=1e-4)


def error(direction: str, steps: int, solver: str, table: Schedule) -> float:
    """Largest distance from the closed form, in standard deviations of what is reached."""
    start, end = (1000, 0) if direction == "sample" else (0, 1000)
    x = images(2)
    run = ddim.sample if direction == "sample" else ddim.invert
    return float((run(gaussian, x * scale(start), steps, table, solver=solver) / scale(end) - x).abs().max())


@pytest.mark.parametrize("direction", ["sample", "invert"])
def test_a_known_solution_is_approached_at_first_order(table: Schedule, direction: str) -> None:
    errors = [error(direction, steps, "ddim", table) for steps in (10, 20, 40, 80, 160)]
    assert all(0.4 < fine / coarse < 0.75 for coarse, fine in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.06


@pytest.mark.parametrize("direction", ["sample", "invert"])
def test_the_second_order_solver_is_closer_at_equal_steps(table: Schedule, direction: str) -> None:
    for steps in (20, 50, 100):
        assert error(direction, steps, "dpmpp", table) < 0.75 * error(direction, steps, "ddim", table)


def test_the_second_order_solver_is_diffusers_dpm_solver_multistep(table: Schedule) -> None:
    steps, x = 12, images(4)
    got = ddim.sample(model, x, steps, table, solver="dpmpp")
    scheduler = DPMSolverMultistepScheduler(trained_betas=BETAS, solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(timesteps=[level - 1 for level in ddim.levels(steps)[:0:-1]])
    for index in scheduler.timesteps:
        x = scheduler.step(model(x, torch.full((3,), int(index) + 1)), index, x).prev_sample
    assert torch.allclose(got, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_each_step_asks_the_model_once_and_only_at_steps_that_it_knows(table: Schedule, solver: str) -> None:
    asked: list[int] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        asked.extend(set(t.tolist()))
        return model(x, t)

    ddim.invert(watched, images(5), 25, table, solver=solver)
    assert asked == [1, *range(40, 1000, 40)]
    asked.clear()
    ddim.sample(watched, images(5), 25, table, solver=solver)
    assert asked == [*range(1000, 0, -40)]


def test_an_images_noise_does_not_depend_on_its_batch() -> None:
    x = torch.zeros(4, 3, 5, 5)
    together = ddim.noise_like(x, 0, "test", [7, 8, 9, 10])
    apart = torch.cat([ddim.noise_like(x[:1], 0, "test", [item]) for item in (7, 8, 9, 10)])
    assert torch.equal(together, apart)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, ddim.noise_like(x, 1, "test", [7, 8, 9, 10]))
    assert float(ddim.noise_like(torch.zeros(1, 3, 64, 64), 0, "test", [0]).std()) == pytest.approx(1, abs=0.03)
