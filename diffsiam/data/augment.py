"""Random views of a batch of images, on the device that holds them.

The transforms take float images (N, 3, H, W) in [0, 1] and one number per image, and do to each image what
torchvision's transform of the same name does. Each image has its own order of the four colour operations, as in
torchvision's ColorJitter.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from diffsiam.data import colour
from diffsiam.params import Views

_ATTEMPTS = 10  # torchvision's RandomResizedCrop tries ten boxes before it falls back to the whole image
_RATIO = (3 / 4, 4 / 3)  # its aspect ratios
_BLUR_SIGMA = (0.1, 2.0)  # SimSiam's
_NUMBERS = (_ATTEMPTS, _ATTEMPTS, 2, 4, 1, 4, 1, 1, 2)  # uniform draws of one view, in the order of `draw`


class Draw(NamedTuple):
    """The random numbers of one view per image."""

    box: Tensor  # top, left, height, width in pixels, (N, 4)
    flip: Tensor  # bool (N,)
    jitter: Tensor  # brightness, contrast, saturation factors and hue shift, (N, 4)
    order: Tensor  # of the four colour operations, int64 (N, 4)
    grey: Tensor  # bool (N,)
    sigma: Tensor | None  # of the blur in pixels, 0 for none, (N,)


def draw(count: int, side: int, views: Views, *generators: torch.Generator, rows: slice = slice(None)) -> Draw:
    """Draw views of ``count`` images of ``side`` x ``side`` pixels: one by each generator, one after the other.

    All numbers lie on the generators' device. ``rows`` keeps those of some of the images.
    """
    device = generators[0].device
    numbers = [torch.rand(count, sum(_NUMBERS), generator=g, device=device)[rows] for g in generators]
    parts = torch.cat(numbers).split(_NUMBERS, dim=1)
    area, ratio, corner, factors, jittered, keys, flip, grey, blurred = parts

    low, high = views.crop_scale or (1.0, 1.0)  # of boxes with the whole area only the whole image fits
    area = side * side * (low + (high - low) * area)
    log_low, log_high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = (log_low + (log_high - log_low) * ratio).exp()
    size = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], dim=2)
    fits = ((size > 0) & (size <= side)).all(dim=2)
    first = fits.int().argmax(dim=1)
    size = size.take_along_dim(first[:, None, None], dim=1)[:, 0]
    size = torch.where(fits.any(dim=1, keepdim=True), size, side)
    corner = (corner * (side - size + 1)).floor()

    strength, neutral = (_row(values, device) for values in (views.jitter, (1.0, 1.0, 1.0, 0.0)))
    jitter = neutral + (2 * factors - 1) * strength * (jittered < views.jitter_probability)
    sigma = None
    if side >= views.blur_from:
        low, high = _BLUR_SIGMA
        sigma = (low + (high - low) * blurred[:, 0]) * (blurred[:, 1] < 0.5)
    box, order = torch.cat([corner, size], dim=1), keys.argsort(dim=1)
    return Draw(box, flip[:, 0] < views.flip, jitter, order, grey[:, 0] < views.grey_probability, sigma)


@functools.cache
def _row(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A constant that a step need not bring to the device again."""
    return torch.tensor(values, device=device)


def apply(x: Tensor, drawn: Draw) -> Tensor:
    """The views that ``drawn`` describes; images and views (N, 3, H, W) in [-1, 1]. Where more views were drawn than
    there are images, the images are taken again for each further one."""
    x = x.repeat(len(drawn.flip) // len(x), 1, 1, 1)
    x = crop_and_flip(x, drawn.box, drawn.flip).add_(1).mul_(0.5)
    x = colour.jitter(x, drawn.jitter, drawn.order, drawn.grey)
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
