"""SimSiam's loss against the formulas of Eq. 3.9 and 3.10, its heads, and the measures of collapse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from diffsiam.models.simsiam import Heads, negative_cosine, participation_ratio, spread


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def heads() -> Heads:
    torch.manual_seed(0)
    return Heads(6)


def literal_distance(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Eq. 3.10, row by row: -(p / ||p||) . (z / ||z||)."""
    rows = [-(a / a.pow(2).sum().sqrt()) @ (b / b.pow(2).sum().sqrt()) for a, b in zip(p, z, strict=True)]
    return torch.stack(rows).mean()


def test_negative_cosine_is_equation_3_10() -> None:
    p, z = draw(5, 7), draw(5, 7, seed=1)
    assert negative_cosine(p, z).item() == pytest.approx(literal_distance(p, z).item(), abs=1e-6)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1)
    assert negative_cosine(p, -p).item() == pytest.approx(1)


def test_no_gradient_reaches_the_target() -> None:
    p, z = draw(5, 7).requires_grad_(), draw(5, 7, seed=1).requires_grad_()
    negative_cosine(p, z).backward()
    assert z.grad is None
    assert p.grad is not None
    assert p.grad.abs().max() > 0


def test_loss_and_gradients_are_equation_3_9_with_stop_gradient(heads: Heads) -> None:
    """The literal form: f is encoder and projector, p the predictor, and the target of each half a constant."""
    z1, z2 = draw(8, 6).requires_grad_(), draw(8, 6, seed=1).requires_grad_()
    loss, _ = heads(z1, z2)
    loss.backward()
    got = [z1.grad, z2.grad, *(p.grad for p in heads.parameters())]

    heads.zero_grad()
    y1, y2 = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    f1, f2 = heads.projector(y1), heads.projector(y2)
    constant1, constant2 = f1.detach().clone(), f2.detach().clone()
    literal = (
        literal_distance(heads.predictor(f1), constant2) / 2 + literal_distance(heads.predictor(f2), constant1) / 2
    )
    literal.backward()
    assert loss.item() == pytest.approx(literal.item(), abs=1e-6)
    for ours, other in zip(got, [y1.grad, y2.grad, *(p.grad for p in heads.parameters())], strict=True):
        assert ours is not None
        assert other is not None
        assert torch.allclose(ours, other, atol=1e-6)


def test_without_the_stop_gradient_the_gradient_would_differ(heads: Heads) -> None:
    """That the test above can fail."""
    z1, z2 = draw(8, 6).requires_grad_(), draw(8, 6, seed=1)
    heads(z1, z2)[0].backward()
    y1 = z1.detach().requires_grad_()
    f1, f2 = heads.projector(y1), heads.projector(z2)
    through = literal_distance(heads.predictor(f1), f2) / 2 + literal_distance(heads.predictor(f2), f1) / 2
    through.backward()
    assert z1.grad is not None
    assert y1.grad is not None
    assert (z1.grad - y1.grad).abs().max() > 1e-3


def test_loss_does_not_depend_on_which_view_is_first(heads: Heads) -> None:
    z1, z2 = draw(8, 6), draw(8, 6, seed=1)
    assert heads(z1, z2)[0].item() == pytest.approx(heads(z2, z1)[0].item(), abs=1e-6)


def test_a_head_on_both_views_is_the_head_on_each(heads: Heads) -> None:
    z1, z2 = draw(8, 6), 2 * draw(8, 6, seed=1) + 1
    twin = copy.deepcopy(heads)
    both = heads.projector(torch.cat([z1, z2]), 2)
    assert torch.allclose(both, torch.cat([twin.projector(z1), twin.projector(z2)]), atol=1e-6)
    for mine, theirs in zip(heads.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_projection_comes_back_without_gradient(heads: Heads) -> None:
    z1 = draw(8, 6).requires_grad_()
    _, projection = heads(z1, draw(8, 6, seed=1))
    assert not projection.requires_grad
    assert torch.allclose(projection, heads.projector(z1), atol=1e-6)


def layers(head: nn.Sequential) -> list[tuple[object, ...]]:
    """Kind of each layer, with widths, bias and affine where it has them."""
    out: list[tuple[object, ...]] = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            out.append(("linear", layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm1d):
            out.append(("norm", layer.num_features, layer.affine))
        else:
            out.append((type(layer).__name__,))
    return out


def test_heads_at_the_thesiss_size_are_simsiams_cifar_heads() -> None:
    with torch.device("meta"):
        thesis = Heads(512)
    assert layers(thesis.projector) == [
        ("linear", 512, 2048, False),
        ("norm", 2048, True),
        ("ReLU",),
        ("linear", 2048, 2048, False),
        ("norm", 2048, False),  # batch norm after both, no ReLU after the last
    ]
    assert layers(thesis.predictor) == [
        ("linear", 2048, 512, False),
        ("norm", 512, True),
        ("ReLU",),
        ("linear", 512, 2048, True),  # batch norm and ReLU after the first only
    ]


def test_spread_is_zero_for_a_collapsed_and_one_for_an_even_batch() -> None:
    assert spread(torch.ones(16, 8)).item() == 0
    assert spread(draw(1, 8).expand(16, 8) * torch.arange(1.0, 17)[:, None]).item() == pytest.approx(0, abs=1e-6)
    assert spread(draw(20_000, 64)).item() == pytest.approx(1, abs=0.01)


def test_spread_by_hand() -> None:
    """Rows (1, 0) and (0, 2): normalised (1, 0), (0, 1); standard deviation sqrt(1/2) in both; times sqrt(2)."""
    assert spread(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item() == pytest.approx(math.sqrt(0.5) * math.sqrt(2))


@pytest.mark.parametrize("shape", [(128, 16), (16, 128)])
def test_participation_ratio_is_that_of_the_eigenvalues_of_the_covariance(shape: tuple[int, int]) -> None:
    z = draw(*shape) * torch.logspace(0, -2, shape[1]) + 5
    eigenvalues = torch.linalg.eigvalsh(torch.cov(z.double().T))
    literal = eigenvalues.sum().square() / eigenvalues.square().sum()
    assert participation_ratio(z).item() == pytest.approx(literal.item(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert participation_ratio(z).item() == pytest.approx(literal.item(), rel=1e-6)


def test_participation_ratio_counts_directions_where_spread_sees_none_missing() -> None:
    """A line through 0: its two ends are as wide apart on the sphere, sqrt(2 / pi), as an even batch is, 1, almost."""
    line = torch.cat([draw(1, 64), -draw(1, 64)]).repeat(32, 1) * torch.linspace(1, 2, 64)[:, None]
    assert participation_ratio(line).item() == pytest.approx(1, abs=1e-9)
    assert spread(line).item() > 0.7
    even = draw(20_000, 64)
    assert participation_ratio(even).item() == pytest.approx(64, rel=0.01)
    assert participation_ratio(torch.ones(16, 8)).item() == 0
