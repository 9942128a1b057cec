"""The frozen diffusion model as an encoder (DDAE, Xiang et al. 2023): what a block of its way up makes of a noised
image."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d_blocks import AttnUpBlock2D
from torch import Tensor, nn

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.diffusion.schedule import Schedule
from diffsiam.models.unet import DiffusionModel, timesteps_like


class FrozenEncoder(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] to z (N, C), float32: the output of ``block`` on the way up, averaged over pixels,
    where the model is fed the image noised to step ``level``.

    The noise of an image is its own (`noise`), so that z is a function of the image.

    Args:
        unet: diffusers' network, whose weights are this module's.
        block: 1 to the number of `layers`.
        level: step t, 1 to T.
        seed: of the noise.
    """

    def __init__(self, unet: UNet2DModel, block: int, level: int, seed: int) -> None:
        super().__init__()
        self.dm, self.table = DiffusionModel(unet), Schedule()
        self.block, self.level, self.seed = block, level, seed

    def forward(self, x: Tensor) -> Tensor:
        """z of ``x``."""
        return features(self.dm, self.table, x, self.level, self.seed)[self.block - 1]


def recorded(config: Mapping[str, Any]) -> FrozenEncoder:
    """The encoder, without its weights, that a config.json describes."""
    unet = UNet2DModel.from_config(config["unet"])
    return FrozenEncoder(unet, config["block"], config["level"], config["seed"])


def layers(unet: UNet2DModel) -> list[nn.Module]:
    """What counts as a block, in the order of the way up: a residual block, with the attention that follows it."""
    found = (block.attentions if isinstance(block, AttnUpBlock2D) else block.resnets for block in unet.up_blocks)
    return [layer for part in found for layer in part]


def features(dm: DiffusionModel, table: Schedule, x: Tensor, level: int, seed: int) -> list[Tensor]:
    """Of images ``x`` (N, 3, H, W) in [-1, 1], noised to step ``level``: the output of each of the `layers`, averaged
    over pixels, (N, C) float32 each. One pass serves all."""
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
        found.append(output.float().mean(dim=(2, 3)))

    hooks = [layer.register_forward_hook(keep) for layer in layers(dm.unet)]
    try:
        t = timesteps_like(level, x)
        dm.predict_noise(table.q_sample(x, t, noise(x, seed)), t)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def noise(x: Tensor, seed: int) -> Tensor:
    """Standard normal noise for images ``x``, each from a generator that ``seed`` and its own pixels name: an image has
    the same noise in every batch, order and split."""
    names = (zlib.crc32(image.tobytes()) for image in pixels.to_uint8(x).cpu().numpy())
    drawn = [torch.randn(x.shape[1:], generator=runtime.generator(seed, "frozen_dm", name)) for name in names]
    return torch.stack(drawn).to(x.device)
