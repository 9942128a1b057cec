"""Algorithm 2: its ends are reconstructions, its middle is what the formulas say."""

from __future__ import annotations

import math

import pytest
import torch

from diffsiam.errors import UserError
from diffsiam.generation.counterfactual import counterfactual, lerp, parse_range, slerp
from diffsiam.generation.model import Guided
from tests.generation import tiny_guided

Latents = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> Guided:
    return tiny_guided.model()


@pytest.fixture(scope="module")
def source(model: Guided) -> Latents:
    return model.latents(tiny_guided.images(2, seed=0))


@pytest.fixture(scope="module")
def target(model: Guided) -> Latents:
    return model.latents(tiny_guided.images(2, seed=1))


def test_scale_0_is_the_reconstruction_whatever_the_range(model: Guided, source: Latents, target: Latents) -> None:
    got = counterfactual(model, source, target, [(0, 0), (1, 3), (0, 4)], torch.tensor([0.0]))
    own = model.sample(source[1], source[0])
    assert got.shape == (2, 3, 1, 3, tiny_guided.SIDE, tiny_guided.SIDE)
    for i in range(3):
        assert torch.allclose(got[:, i, 0], own, atol=1e-3)


def test_all_segments_at_scale_1_are_the_other_images_reconstruction(
    model: Guided, source: Latents, target: Latents
) -> None:
    got = counterfactual(model, source, target, [(0, 4)], torch.tensor([1.0]))[:, 0, 0]
    assert torch.allclose(got, model.sample(target[1], target[0]), atol=1e-3)
    assert not torch.allclose(got, model.sample(source[1], source[0]), atol=1e-1)


def test_without_an_exchange_of_noise_all_segments_are_sampled_from_the_sources_own(
    model: Guided, source: Latents, target: Latents
) -> None:
    scales = torch.tensor([0.0, 0.5, 1.0])
    got = counterfactual(model, source, target, [(0, 4)], scales, exchange_noise=False)[:, 0]
    for j, s in enumerate(scales):
        assert torch.allclose(got[:, j], model.sample(source[1], torch.lerp(source[0], target[0], s)), atol=1e-3)


def test_each_image_is_algorithm_2_by_hand(model: Guided, source: Latents, target: Latents) -> None:
    scales = [0.25, 0.75]
    got = counterfactual(model, source, target, [(0, 2), (1, 3)], torch.tensor(scales))
    for i in range(2):
        for r, (start, stop) in enumerate([(0, 4 * 2), (4 * 1, 4 * 3)]):
            for j, s in enumerate(scales):
                z = source[0][i].clone()
                z[start:stop] = (1 - s) * source[0][i][start:stop] + s * target[0][i][start:stop]
                a, b = source[1][i].double(), target[1][i].double()
                angle = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
                x_T = (math.sin((1 - s) * angle) * a + math.sin(s * angle) * b) / math.sin(angle)
                expected = model.sample(x_T.float()[None], z[None])[0]
                assert torch.allclose(got[i, r, j], expected, atol=1e-3)


def test_an_empty_range_leaves_z_bit_for_bit_and_scale_1_exchanges_it_on_the_range_only() -> None:
    z, other = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([0, 4, 8, 12, 16])
    scales = torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(lerp(z, other, edges, (2, 2), scales), z[:, None].expand(-1, 3, -1))
    moved = lerp(z, other, edges, (1, 3), scales)
    assert torch.equal(moved[:, 0], z)
    assert torch.equal(moved[:, 2, 4:12], other[:, 4:12])
    assert torch.equal(moved[..., :4], z[:, None, :4].expand(-1, 3, -1))
    assert torch.equal(moved[..., 12:], z[:, None, 12:].expand(-1, 3, -1))


def test_slerp_keeps_to_the_arc_and_meets_both_ends_exactly() -> None:
    a = torch.tensor([[2.0, 0.0]]).view(1, 1, 1, 2)
    b = torch.tensor([[0.0, 2.0]]).view(1, 1, 1, 2)
    got = slerp(a, b, torch.tensor([0.0, 1 / 3, 1.0])).flatten(2)[0]
    assert torch.equal(got[0], a.flatten())
    assert torch.equal(got[2], b.flatten())
    assert got[1].tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)])
    assert torch.equal(slerp(a, a, torch.tensor([0.5]))[:, 0], a)


@pytest.mark.parametrize("arc", [0.05, 1.0, 2.5, 3.1])
def test_slerp_divides_an_arc_acute_or_obtuse_as_its_scales_do(arc: float) -> None:
    ends = torch.tensor([[1.0, 0.0], [math.cos(arc), math.sin(arc)]]).view(2, 1, 1, 1, 2)
    got = slerp(ends[0], ends[1], torch.tensor([0.2, 0.5])).flatten(2)[0]
    assert torch.allclose(got, torch.tensor([[math.cos(s * arc), math.sin(s * arc)] for s in (0.2, 0.5)]), atol=2e-6)


def test_slerp_of_parallel_and_opposite_images_is_linear_whatever_rounding_makes_of_their_cosine() -> None:
    a = torch.randn(300, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for factor in (3.0, -1.0):
        got = slerp(a, factor * a, torch.tensor([0.25]))[:, 0]
        assert torch.allclose(got, (0.75 + 0.25 * factor) * a, atol=1e-5)


def test_ranges_are_read_half_open_from_0() -> None:
    assert parse_range("0-8", 64) == (0, 8)
    assert parse_range("3-3", 64) == (3, 3)
    assert parse_range("0-64", 64) == (0, 64)


@pytest.mark.parametrize("text", ["0-65", "8-0", "-1-3", "5", "a-b", "1.5-2", "", "0-8-9"])
def test_a_bad_range_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UserError, match=r"64 segments.*0 <= A <= B <= 64") as error:
        parse_range(text, 64)
    assert repr(text) in str(error.value)
