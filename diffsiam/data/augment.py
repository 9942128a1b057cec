"""Random views of a batch of images, on the device that holds them.

The transforms take float images (N, 3, H, W) in [0, 1] and one number per image, and do to each image what
torchvision's transform of the same name does. One departure: the four colour operations of a batch share one random
order (torchvision draws an order per image), so that each runs once over the whole batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from diffsiam.params import Views

_ATTEMPTS = 10  # torchvision's RandomResizedCrop tries ten boxes before it falls back to the whole image
_RATIO = (3 / 4, 4 / 3)  # its aspect ratios
_LUMA = (0.2989, 0.587, 0.114)
_BLUR_SIGMA = (0.1, 2.0)  # SimSiam's


class Draw(NamedTuple):
    """The random numbers of one view per image."""

    box: Tensor  # top, left, height, width in pixels, (N, 4)
    flip: Tensor  # bool (N,)
    jitter: Tensor  # brightness, contrast, saturation factors and hue shift, (N, 4)
    order: list[int]  # of the four colour operations
    grey: Tensor  # bool (N,)
    sigma: Tensor | None  # of the blur in pixels, 0 for none, (N,)


def draw(count: int, side: int, views: Views, generator: torch.Generator) -> Draw:
    """Draw one view for each of ``count`` images of ``side`` x ``side`` pixels, on the generator's device."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)

    low, high = views.crop_scale
    area = side * side * (low + (high - low) * uniform(count, _ATTEMPTS))
    log_low, log_high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = (log_low + (log_high - log_low) * uniform(count, _ATTEMPTS)).exp()
    size = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], dim=2)
    fits = ((size > 0) & (size <= side)).all(dim=2)
    first = fits.int().argmax(dim=1)
    size = size[torch.arange(count, device=size.device), first]
    size = torch.where(fits.any(dim=1, keepdim=True), size, torch.full_like(size, side))
    corner = (uniform(count, 2) * (side - size + 1)).floor()

    strength = torch.tensor(views.jitter, device=generator.device)
    jitter = (2 * uniform(count, 4) - 1) * strength * (uniform(count, 1) < views.jitter_probability)
    jitter[:, :3] += 1
    order = torch.randperm(4, generator=generator, device=generator.device).tolist()
    flip, grey = uniform(count) < views.flip, uniform(count) < views.grey_probability
    sigma = None
    if side >= views.blur_from:
        sigma = (_BLUR_SIGMA[0] + (_BLUR_SIGMA[1] - _BLUR_SIGMA[0]) * uniform(count)) * (uniform(count) < 0.5)
    return Draw(torch.cat([corner, size], dim=1), flip, jitter, order, grey, sigma)


def part(drawn: Draw, rows: slice) -> Draw:
    """The draw of some rows of a batch."""
    sigma = drawn.sigma if drawn.sigma is None else drawn.sigma[rows]
    return Draw(drawn.box[rows], drawn.flip[rows], drawn.jitter[rows], drawn.order, drawn.grey[rows], sigma)


def apply(x: Tensor, drawn: Draw) -> Tensor:
    """The views that ``drawn`` describes; images and views (N, 3, H, W) in [-1, 1]."""
    x = crop_and_flip(x, drawn.box, drawn.flip).add_(1).mul_(0.5)
    for operation in drawn.order:
        x = _COLOUR[operation](x, drawn.jitter[:, operation].view(-1, 1, 1, 1))
    x = torch.where(drawn.grey.view(-1, 1, 1, 1), _grey(x), x)
    if drawn.sigma is not None:
        x = blur(x, drawn.sigma)
    return x.mul(2).sub_(1).contiguous(memory_format=torch.channels_last)


def crop_and_flip(x: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Bilinear resize of each image's ``box`` to the whole image, mirrored where ``flip``.

    Positions are clamped to the box, so nothing outside it leaks in. Both axes are small matrix products: each row of
    the interpolation matrix holds the two weights of one output pixel.
    """
    side = x.shape[-1]
    pixel = torch.arange(side, device=x.device, dtype=torch.float32)

    def interpolation(start: Tensor, length: Tensor) -> Tensor:
        position = (pixel + 0.5) * (length / side)[:, None] - 0.5
        position = start[:, None] + torch.minimum(position.clamp_min(0), (length - 1)[:, None])
        return (1 - (position[:, :, None] - pixel).abs()).clamp_min_(0)

    rows = interpolation(box[:, 0], box[:, 2])
    columns = interpolation(box[:, 1], box[:, 3])
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    with torch.autocast(x.device.type, enabled=False):
        return rows[:, None] @ x.contiguous() @ columns.transpose(1, 2)[:, None]


def _grey(x: Tensor) -> Tensor:
    return (_LUMA[0] * x[:, :1] + _LUMA[1] * x[:, 1:2] + _LUMA[2] * x[:, 2:]).expand_as(x)


def _blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; ``factor`` (N, 1, 1, 1), 1 changes nothing."""
    return (factor * x).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey."""
    return _blend(x, _grey(x)[:, :1].mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(x, _grey(x), factor)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` turns, (N, 1, 1, 1) in [-0.5, 0.5], in HSV space."""
    r, g, b = x.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    span = value - torch.minimum(torch.minimum(r, g), b)
    inverse = 1 / span.clamp_min(1e-12)  # where the span is zero, so is what it divides
    sector = torch.where(
        r == value, (g - b) * inverse, torch.where(g == value, 2 + (b - r) * inverse, 4 + (r - g) * inverse)
    )
    sector += 6 * shift[:, 0]
    # Each channel is the value less the span times a trapezoid of its distance from the hue (Smith 1978).
    channels = []
    for offset in (5, 3, 1):
        k = sector + offset
        k -= (k * (1 / 6)).floor_().mul_(6)
        channels.append(value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(span))
    return torch.stack(channels, dim=1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one ``sigma`` in pixels per image (0 for none), by a kernel of a tenth of the side."""
    count, channels, side, _ = x.shape
    radius = max(1, side // 20)
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None]
    planes = functional.pad(x.reshape(1, count * channels, side, side), (radius,) * 4, mode="reflect")
    planes = functional.conv2d(planes, kernel[:, :, :, None], groups=count * channels)
    return functional.conv2d(planes, kernel[:, :, None, :], groups=count * channels).reshape(x.shape)


_COLOUR = (brightness, contrast, saturation, hue)
