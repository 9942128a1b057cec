"""u_theta: the diffusion model around diffusers' `UNet2DModel`, split where the decoder branches off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.models import blocks
from diffsiam.models.group_norm import norm_silu
from diffsiam.params import Unet

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # diffusers' own names


class Trunk(NamedTuple):
    """What the U-Net's down path leaves for the up path: time embedding (N, E), skips, and the last feature map."""

    time: Tensor
    skips: tuple[Tensor, ...]
    hidden: Tensor


def feature_sides(cfg: Unet, image_size: int) -> list[int]:
    """Side in pixels of the feature maps of each level, from the images' own on: each level halves them."""
    return [image_size // 2**level for level in range(len(cfg.channels))]


class DiffusionModel(nn.Module):
    """A noise-predicting U-Net (Ho et al.), with `predict_noise` and `predict_x0` as its public face.

    ``t`` is the paper step, an int64 tensor of shape (N,) in 1..T; the network is fed the index ``t - 1``.
    Images are (N, 3, H, W) in [-1, 1].
    """

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet
        self._down, self._up = blocks.adopt(unet.down_blocks), blocks.adopt(unet.mid_block, unet.up_blocks)

    def hold(self, dtype: torch.dtype) -> DiffusionModel:
        """Keep the weights of convolutions and matrix products in ``dtype``: autocast would convert those of a frozen
        network in every pass, to the same numbers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype)
        return self

    def trunk(self, x: Tensor, t: Tensor) -> Trunk:
        """Time embedding and down path."""
        time = self.unet.time_embedding(self.unet.time_proj(t - 1))
        told = blocks.Conditioning(blocks.project(time, [block.time_emb_proj for block in self._down]))
        hidden = self.unet.conv_in(x)
        skips: tuple[Tensor, ...] = (hidden,)
        for block in self.unet.down_blocks:
            hidden, more = block(hidden, told)
            skips += more
        return Trunk(time, skips, hidden)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Trunk, Tensor]:
        """The trunk, and the noise predicted from it."""
        trunk = self.trunk(x, t)
        return trunk, self.predict_noise(x, t, trunk)

    def predict_noise(self, x: Tensor, t: Tensor, trunk: Trunk | None = None) -> Tensor:
        """eps_theta(x, t), float32; a ``trunk`` of the same (x, t) saves the way down."""
        trunk = trunk or self.trunk(x, t)
        told = blocks.Conditioning(blocks.project(trunk.time, [block.time_emb_proj for block in self._up]))
        return up_path(self.unet, trunk, told)

    def predict_x0(self, x: Tensor, t: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        r"""u_theta(x, t): ``x0`` recovered at the noise level that ``signal`` = sqrt(\bar\alpha) and ``sigma`` =
        sqrt(1 - \bar\alpha), (N, 1, 1, 1), belong to; with ``time_input: t`` it is not that of ``t`` (Eq. 3.11)."""
        return (x - sigma * self.predict_noise(x, t)) / signal

    @classmethod
    def create(cls, cfg: Unet, image_size: int) -> DiffusionModel:
        """A network of the given widths, as Ho et al. lay it out: additive time embedding, strided convolutions."""
        sides = feature_sides(cfg, image_size)
        bad = [c for c in cfg.channels if c % cfg.norm_groups]
        if bad or image_size % 2 ** (len(cfg.channels) - 1) or sides[-1] < 2:
            raise UserError(
                f"diffusion.unet: channels {list(cfg.channels)} do not fit norm_groups {cfg.norm_groups} and images of "
                f"{image_size}x{image_size}. Every width must be a multiple of norm_groups, and {len(cfg.channels)} "
                f"levels must halve {image_size} without remainder, to 2 or more."
            )
        attention = [side in cfg.attention_resolutions for side in sides]
        unet = UNet2DModel(
            sample_size=image_size,
            block_out_channels=cfg.channels,
            layers_per_block=cfg.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            attention_head_dim=None,
            norm_num_groups=cfg.norm_groups,
            dropout=cfg.dropout,
        )
        return cls(unet)

    @classmethod
    def load(cls, folder: Path | str) -> DiffusionModel:
        """Read a diffusers folder; frozen and in evaluation mode."""
        folder = Path(folder)
        config = {k: v for k, v in runtime.read_json(folder / CONFIG).items() if not k.startswith("_")}
        model = cls(UNet2DModel.from_config(config))
        unet = model.unet.config
        if unet.class_embed_type or unet.num_class_embeds or unet.time_embedding_type != "positional":
            raise UserError(f"{folder / CONFIG}: class-conditional and Fourier-time networks are not supported.")
        if unet.act_fn not in ("silu", "swish"):
            raise UserError(f"{folder / CONFIG}: act_fn: met {unet.act_fn}, allowed: silu. Choose another model.")
        try:
            model.unet.load_state_dict(runtime.load_weights(folder / WEIGHTS))
        except RuntimeError as e:
            raise UserError(f"{folder / WEIGHTS}: does not fit {folder / CONFIG}: {e}") from None
        return model.eval().requires_grad_(False)

    def save(self, folder: Path | str, state: dict[str, Tensor]) -> None:
        """Write ``state`` (names as in this module) and the config in diffusers' layout."""
        config = {
            "_class_name": "UNet2DModel",
            **{k: v for k, v in self.unet.config.items() if not k.startswith("_")},
        }
        weights = {name.removeprefix("unet."): tensor for name, tensor in state.items()}
        runtime.save_weights(Path(folder) / WEIGHTS, weights)
        runtime.write_text(Path(folder) / CONFIG, json.dumps(config, indent=2) + "\n")


def up_path(unet: UNet2DModel, trunk: Trunk, told: blocks.Conditioning) -> Tensor:
    """Middle block, up path and output block of ``unet``, whose residual blocks are told ``told``; float32 out.

    The one place that walks the way up: the frozen network's blocks are told the time, the decoder's time and z.
    """
    skips, hidden = list(trunk.skips), unet.mid_block(trunk.hidden, told)
    for block in unet.up_blocks:
        count = len(block.resnets)
        hidden = block(hidden, tuple(skips[-count:]), told)
        del skips[-count:]
    return unet.conv_out(norm_silu(hidden, unet.conv_norm_out)).float()


def timesteps_like(value: int, x: Tensor) -> Tensor:
    """The step ``value`` for every image of ``x``."""
    return torch.full((x.shape[0],), value, dtype=torch.int64, device=x.device)
