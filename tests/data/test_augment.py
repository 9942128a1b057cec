"""Batched views against torchvision, image by image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import scipy.stats
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from diffsiam import params
from diffsiam.data import augment, colour

VIEWS = params.Views((0.2, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 64)  # SimSiam's


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, side: int) -> Tensor:
    """Random pictures in [0, 1], a quarter of them with flat or saturated patches."""
    x = torch.rand(count, 3, side, side, generator=generator(7))
    x[: count // 4, :, : side // 2] = x[: count // 4, :, :1, :1].round()
    return x


def each(operation: Callable[[Tensor, float], Tensor], x: Tensor, factor: Tensor) -> Tensor:
    return torch.stack([operation(image, float(f)) for image, f in zip(x, factor, strict=True)])


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@pytest.mark.parametrize("side", [16, 32])
def test_crop_and_flip_is_torchvisions_resized_crop_of_each_image(side: int) -> None:
    drawn = augment.draw(40, side, VIEWS, generator())
    x = images(40, side)
    got = augment.crop_and_flip(x, drawn.box, drawn.flip)
    assert 0 < drawn.flip.sum() < 40
    for i in range(40):
        top, left, height, width = (int(v) for v in drawn.box[i])
        expected = tv.resized_crop(x[i], top, left, height, width, [side, side], antialias=True)
        expected = tv.horizontal_flip(expected) if drawn.flip[i] else expected
        assert torch.allclose(got[i], expected, atol=1e-5), (i, drawn.box[i])


def test_the_whole_image_is_left_as_it_is() -> None:
    x = images(4, 16)
    box = torch.tensor([[0.0, 0, 16, 16]]).repeat(4, 1)
    assert torch.allclose(augment.crop_and_flip(x, box, torch.zeros(4, dtype=torch.bool)), x, atol=1e-6)


@pytest.mark.parametrize("side", [8, 16, 64, 128])
def test_without_a_crop_every_view_shows_the_whole_image(side: int) -> None:
    views = dataclasses.replace(VIEWS, crop_scale=None, jitter_probability=0.0, grey_probability=0.0, blur_from=999)
    drawn, cropped = augment.draw(5_000, side, views, generator()), augment.draw(5_000, side, VIEWS, generator())
    assert drawn.box.unique(dim=0).tolist() == [[0, 0, side, side]]
    assert torch.equal(drawn.flip, cropped.flip)  # nothing else is drawn anew
    x = images(20, side) * 2 - 1
    for i, view in enumerate(augment.apply(x, augment.draw(20, side, views, generator(1)))):
        flip = bool(augment.draw(20, side, views, generator(1)).flip[i])
        assert torch.allclose(view, tv.horizontal_flip(x[i]) if flip else x[i], atol=1e-6)


FACTORS = torch.tensor([0.0, 0.6, 0.9, 1.0, 1.1, 1.4, 2.0, 0.3])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.brightness, tv.adjust_brightness),
        (colour.contrast, tv.adjust_contrast),
        (colour.saturation, tv.adjust_saturation),
    ],
)
def test_colour_blends_are_torchvisions(ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> None:
    x = images(8, 16)
    assert torch.allclose(ours(x, column(FACTORS)), each(theirs, x, FACTORS), atol=2e-5)


def test_hue_is_torchvisions_for_every_sector_and_for_greys() -> None:
    x = images(64, 8)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)  # 27 pure, mixed and grey colours
    x[0].view(3, -1)[:, :27] = corners.T
    shift = torch.linspace(-0.5, 0.5, 64)
    shift[0] = 0.1
    assert torch.allclose(colour.hue(x, column(shift)), each(tv.adjust_hue, x, shift), atol=2e-5)


def test_grey_is_torchvisions() -> None:
    x = images(8, 16)
    whole = torch.tensor([[0.0, 0, 16, 16]]).repeat(8, 1)
    plain = torch.tensor([1.0, 1, 1, 0]).repeat(8, 1)
    grey = torch.arange(8) % 2 == 0
    drawn = augment.Draw(whole, torch.zeros(8, dtype=torch.bool), plain, torch.arange(4).repeat(8, 1), grey, None)
    got = augment.apply(2 * x - 1, drawn)
    expected = torch.stack([tv.rgb_to_grayscale(v, 3) if g else v for v, g in zip(x, grey, strict=True)])
    assert torch.allclose(got, 2 * expected - 1, atol=2e-5)


def test_blur_is_torchvisions_with_a_kernel_of_a_tenth_of_the_side() -> None:
    x, sigma = images(6, 64), torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0, 0.0])
    got = augment.blur(x, sigma)
    for i in range(5):
        assert torch.allclose(got[i], tv.gaussian_blur(x[i], [7, 7], [float(sigma[i])] * 2), atol=1e-5)
    assert torch.allclose(got[5], x[5], atol=1e-6)  # sigma 0: no blur


@pytest.mark.parametrize("side", [32, 64])
def test_a_view_is_the_same_chain_of_torchvisions_operations(side: int) -> None:
    x = images(12, side)
    drawn = augment.draw(12, side, VIEWS, generator(3))
    got = augment.apply(2 * x - 1, drawn)
    operations = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for i in range(12):
        top, left, height, width = (int(v) for v in drawn.box[i])
        v = tv.resized_crop(x[i], top, left, height, width, [side, side], antialias=True)
        v = tv.horizontal_flip(v) if drawn.flip[i] else v
        for operation in drawn.order[i].tolist():
            v = operations[operation](v, float(drawn.jitter[i, operation]))
        v = tv.rgb_to_grayscale(v, 3) if drawn.grey[i] else v
        if drawn.sigma is not None and drawn.sigma[i] > 0:
            v = tv.gaussian_blur(v, [7, 7], [float(drawn.sigma[i])] * 2)
        assert torch.allclose(got[i], 2 * v - 1, atol=1e-4), i
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0)])
def test_boxes_have_the_distribution_of_torchvisions_random_resized_crop(scale: tuple[float, float]) -> None:
    count, side = 4000, 32
    views = params.Views(scale, 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 64)
    ours = augment.draw(count, side, views, generator(5)).box
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.zeros(3, side, side)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(count)],
            dtype=torch.float32,
        )
    features = {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "bottom": lambda b: b[:, 0] + b[:, 2],
    }
    for name, feature in features.items():
        p = scipy.stats.ks_2samp(feature(ours).numpy(), feature(theirs).numpy()).pvalue
        assert p > 0.005, (name, p)
    assert (ours == ours.round()).all()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= side).all()
    assert (ours[:, 2:] >= 1).all()


def test_jitter_flip_grey_and_blur_have_the_asked_distributions() -> None:
    drawn = augment.draw(20_000, 64, dataclasses.replace(VIEWS, flip=0.3), generator(1))
    changed = (drawn.jitter != torch.tensor([1.0, 1, 1, 0])).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.01)
    for i, (middle, strength) in enumerate([(1, 0.4), (1, 0.4), (1, 0.4), (0, 0.1)]):
        values = drawn.jitter[changed, i].numpy()
        assert scipy.stats.kstest(values, scipy.stats.uniform(middle - strength, 2 * strength).cdf).pvalue > 0.005
    assert drawn.flip.float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert drawn.grey.float().mean().item() == pytest.approx(0.2, abs=0.012)
    assert drawn.sigma is not None
    blurred = drawn.sigma > 0
    assert blurred.float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert scipy.stats.kstest(drawn.sigma[blurred].numpy(), scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 0.005
    jitter = drawn.jitter[changed]
    assert torch.corrcoef(jitter.T).fill_diagonal_(0).abs().max() < 0.03


def test_each_image_has_its_own_order_of_the_colour_operations_all_equally_often() -> None:
    order = augment.draw(24_000, 8, VIEWS, generator()).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(24_000, 4))
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.005


def test_rounds_of_all_operations_jitter_as_the_groups_of_each_do() -> None:
    """Accelerators without Triton take the first, CPUs the second."""
    x, drawn = images(40, 16), augment.draw(40, 16, VIEWS, generator(8))
    got = colour._by_rounds(x, drawn.jitter, drawn.order)
    nothing = torch.zeros_like(drawn.grey)
    assert torch.allclose(got, colour.jitter(x, drawn.jitter, drawn.order, nothing), atol=1e-6)
    assert not torch.allclose(got, x, atol=0.1)


def test_blur_begins_at_the_asked_side() -> None:
    assert augment.draw(4, 63, VIEWS, generator()).sigma is None
    assert augment.draw(4, 64, VIEWS, generator()).sigma is not None


@pytest.mark.parametrize("side", [16, 64])
def test_parts_of_a_batch_get_the_views_of_the_whole(side: int) -> None:
    x = 2 * images(10, side) - 1
    whole = augment.apply(x, augment.draw(10, side, VIEWS, generator(2)))
    for rows in (slice(0, 3), slice(3, 10)):
        drawn = augment.draw(10, side, VIEWS, generator(2), rows=rows)
        assert torch.allclose(augment.apply(x[rows], drawn), whole[rows], atol=1e-6)


def test_the_same_generator_gives_the_same_views_and_leaves_the_images_alone() -> None:
    x = 2 * images(6, 16) - 1
    before = x.clone()
    a, b = (augment.apply(x, augment.draw(6, 16, VIEWS, generator(4))) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(x, before)
    assert not torch.equal(a, augment.apply(x, augment.draw(6, 16, VIEWS, generator(5))))


def test_views_stay_in_range_and_in_float32_under_bf16() -> None:
    x = 2 * images(64, 16) - 1
    with torch.autocast("cpu", torch.bfloat16):
        got = augment.apply(x, augment.draw(64, 16, VIEWS, generator(6)))
    assert got.dtype == torch.float32
    assert got.min() >= -1 - 1e-5
    assert got.max() <= 1 + 1e-5
    assert torch.equal(got, augment.apply(x, augment.draw(64, 16, VIEWS, generator(6))))
