"""The only conversion between stored pixels (uint8 in 0..255) and network pixels (float in [-1, 1])."""

from __future__ import annotations

import torch


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Stored images as a network takes them.

    Args:
        images: uint8, (N, H, W, C), on any device.
    Returns:
        float32 in [-1, 1], (N, C, H, W) in channels-last memory, on the same device.
    Raises:
        TypeError: the images are not uint8, so their scale is unknown.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"to_float takes uint8 images, met {images.dtype}")
    nchw = images.contiguous().permute(0, 3, 1, 2)  # a view: NHWC in memory is what torch calls channels-last
    return nchw.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Network images as they are stored; values outside [-1, 1] are clamped.

    Args:
        images: floating point, (N, C, H, W), on any device.
    Returns:
        uint8, (N, H, W, C), contiguous, on the same device. ``to_uint8(to_float(x))`` is ``x``.
    """
    scaled = images.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
