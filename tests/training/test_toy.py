"""DisDiff's loss learns on an exact diffusion model, as far as a few seconds go. All of it:
`python -m tests.benchmarks.toy_disdiff`."""

from __future__ import annotations

import math

import pytest
import torch

from diffsiam.diffusion.schedule import Schedule
from tests.benchmarks import toy_disdiff as toy


def test_the_exact_denoiser_finds_a_point_at_little_noise_and_the_mean_at_much() -> None:
    data = toy.points(0)
    assert data.shape == (125, 12)
    assert data.var().item() == pytest.approx(0.45, rel=0.15)
    table, noise = Schedule(), torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    for step, expected in ((1, data), (1000, data.mean(0).expand_as(data))):
        signal, sigma = (f(torch.tensor([step]))[:, :, 0, 0] for f in (table.signal, table.sigma))
        got = toy.exact(signal * data + sigma * noise, signal.expand(125, 1), sigma.expand(125, 1), data)
        assert torch.allclose(got, expected, atol=0.05)


def test_in_300_steps_the_fields_explain_the_error_and_both_losses_fall_below_chance() -> None:
    _, start = toy.train(0, 0.5, 1)
    assert start["invariant"] == pytest.approx(math.log(3), rel=1e-5)
    assert start["variant"] == pytest.approx(math.log(3), rel=1e-5)
    _, parts = toy.train(0, 0.5, 300)
    assert parts["reconstruction"] < 0.7 * start["reconstruction"]
    assert parts["invariant"] < 0.9 * math.log(3)
    assert parts["variant"] < 0.9 * math.log(3)
