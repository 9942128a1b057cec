"""DisDiff's loss against Python loops over its definitions (Eq. 6, 7, 9 to 13), one image and one code at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffsiam.diffusion.schedule import Schedule
from diffsiam.training import disentangle

IMAGES, CODES, DIM = 3, 3, 4


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def codes() -> tuple[Tensor, Tensor, Tensor]:
    """z, unguided, guided."""
    return rand(IMAGES, CODES, DIM, seed=1), rand(IMAGES, CODES, DIM, seed=2), rand(IMAGES, CODES, DIM, seed=3)


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def literal(logits: list[float], drawn: int) -> float:
    return -math.log(math.exp(logits[drawn]) / sum(math.exp(v) for v in logits))


def test_both_cross_entropies_are_the_literal_formulas() -> None:
    z, unguided, guided = codes()
    drawn = torch.tensor([2, 0, 1])
    invariant, variant = disentangle.cross_entropies(disentangle.distances(z, unguided, guided), drawn)
    for i in range(IMAGES):
        a, b = [], []
        for k in range(CODES):
            own, bar, hat = (t[i, k].tolist() for t in (z, unguided, guided))
            a.append(norm([x - y for x, y in zip(hat, bar, strict=True)]))
            negative, positive = ([x - y for x, y in zip(t, own, strict=True)] for t in (bar, hat))
            b.append(norm(negative) - norm(positive))
        assert invariant[i].item() == pytest.approx(literal(a, int(drawn[i])), rel=1e-12)
        assert variant[i].item() == pytest.approx(literal(b, int(drawn[i])), rel=1e-12)


def test_without_a_change_both_are_the_logarithm_of_the_number_of_codes() -> None:
    z, unguided, _ = codes()
    of = disentangle.distances(z, unguided, unguided)
    for loss in disentangle.cross_entropies(of, torch.tensor([0, 1, 2])):
        assert loss.tolist() == pytest.approx([math.log(CODES)] * IMAGES, rel=1e-15)


def test_no_change_has_a_gradient_that_is_finite() -> None:
    """A norm of zeros has a corner there, where every training begins."""
    z, unguided, _ = codes()
    guided = unguided.clone().requires_grad_()
    sum(
        disentangle.cross_entropies(disentangle.distances(z, unguided, guided), torch.tensor([0, 1, 2]))
    ).sum().backward()
    assert guided.grad is not None
    assert guided.grad.isfinite().all()


def test_the_guided_reconstruction_is_that_of_the_shifted_noise() -> None:
    """Eq. 7 with the noise of Eq. 6, eps_hat - sqrt(1 - abar) g."""
    table, t = Schedule().double(), torch.tensor([3, 400, 990])
    x, noise, field = rand(3, 3, 2, 2, seed=4), rand(3, 3, 2, 2, seed=5), rand(3, 3, 2, 2, seed=6)
    gain = table.sigma(t).square() / table.signal(t)
    got = disentangle.conditioned_x0(table.x0_from_noise(x, t, noise), gain, field)
    expected = table.x0_from_noise(x, t, noise - table.sigma(t) * field)
    assert torch.allclose(got, expected, rtol=1e-6)


def test_the_weight_is_the_mean_square_in_units_of_the_variance_and_has_no_gradient() -> None:
    x0_hat, guided = rand(2, 3, 4, 4, seed=7), rand(2, 3, 4, 4, seed=8).requires_grad_()
    weight = disentangle.difference_weight(x0_hat, guided, 0.25)
    for i in range(2):
        pairs = zip(x0_hat[i].flatten().tolist(), guided[i].flatten().tolist(), strict=True)
        squares = [(a - b) ** 2 for a, b in pairs]
        assert weight[i].item() == pytest.approx(4 * sum(squares) / len(squares))
    assert not weight.requires_grad


def test_the_frozen_encoder_gives_its_input_a_gradient_and_nothing_else() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().train()
    encoder(rand(6, 5, seed=9))  # statistics other than the initial ones
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    x = rand(6, 5, seed=10).requires_grad_()
    got = disentangle.frozen(encoder, x)
    got.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in encoder.parameters())
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(got, encoder.eval()(x))


def test_the_attached_encoder_learns_by_its_running_statistics() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double().train()
    disentangle.frozen(encoder, rand(6, 5), attached=True).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert int(encoder[1].num_batches_tracked) == 0
