"""Guided-diffusion U-Nets (Dhariwal and Nichol 2021), as PDAE publishes them, as diffusers' `UNet2DModel`.

The network has scale-shift group norms of 32 groups, residual down- and upsampling, and attention after every
residual block of the chosen levels and in the middle. Its parts are named ``time_embed``, ``input_blocks``,
``middle_block``, ``output_blocks`` and ``out``, numbered in the order in which they run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffsiam.errors import UserError

if TYPE_CHECKING:
    import torch

# PDAE's checkpoint.pt: the averaged weights, beside the raw ones and the optimiser's state
EMA_KEY = "ema_denoise_fn"

SIZE_REMEDY = "Choose another model, or set data.image_size to the model's."

# Values of the keys of config.yml that can be converted; a key that is not there has such a value.
_NETWORK: dict[str, tuple[Any, ...]] = {
    "input_channel": (3,),
    "dims": (2,),
    "num_class": (None,),
    "use_new_attention_order": (False,),
    "use_scale_shift_norm": (True,),
    "resblock_updown": (True,),
}
_DIFFUSION: dict[str, tuple[Any, ...]] = {
    "timesteps": (1000,),
    "betas_type": ("linear",),
    "linear_beta_start": (1e-4,),
    "linear_beta_end": (0.02,),
}
_REQUIRED = (
    "base_channel",
    "channel_multiplier",
    "num_residual_blocks_of_a_block",
    "attention_resolutions",
    "num_heads",
    "head_channel",
)

_RESIDUAL: dict[str, tuple[str, ...]] = {
    "in_layers.0": ("norm1",),
    "in_layers.2": ("conv1",),
    "emb_layers.1": ("time_emb_proj",),
    "out_layers.0": ("norm2",),
    "out_layers.3": ("conv2",),
    "skip_connection": ("conv_shortcut",),
}
_ATTENTION: dict[str, tuple[str, ...]] = {
    "norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "proj_out": ("to_out.0",),
}
_ENDS: dict[str, tuple[str, ...]] = {
    "time_embed.0": ("time_embedding.linear_1",),
    "time_embed.2": ("time_embedding.linear_2",),
    "input_blocks.0.0": ("conv_in",),
    "out.0": ("conv_norm_out",),
    "out.2": ("conv_out",),
}


def check_options(
    met: Mapping[str, Any],
    allowed: Mapping[str, tuple[Any, ...]],
    where: str,
    remedy: str = "Choose another model.",
) -> None:
    """Refuse, by name, the first key of ``met`` whose value is not among the ``allowed``; ``where`` they were met."""
    for key, values in allowed.items():
        if key in met and met[key] not in values:
            raise UserError(
                f"{where}: {key}: met {json.dumps(met[key], default=str)}, allowed: "
                f"{' or '.join(json.dumps(value) for value in values)}. {remedy}"
            )


def unet_config(config: Mapping[str, Any], image_size: int, where: str) -> dict[str, Any]:
    """The `UNet2DModel` config of the network that PDAE's config.yml describes.

    Args:
        config: ``denoise_fn_config`` holds the network's options: ``attention_resolutions`` are rates of
            downsampling (2 = half the image's side), ``head_channel: -1`` stands for ``num_heads`` heads at every
            level. ``diffusion_config`` and ``dataset_config`` may be absent.
        image_size: side of the images in pixels.
        where: what the config is called in messages.
    Raises:
        UserError: an option is missing, `UNet2DModel` cannot express its value, or the noise schedule or the image
            size is not ours.
    """
    check_options(config.get("diffusion_config") or {}, _DIFFUSION, f"{where}: diffusion_config")
    data, size = config.get("dataset_config") or {}, {"image_size": (image_size,)}
    check_options(data, size, f"{where}: dataset_config", SIZE_REMEDY)
    options, where = config.get("denoise_fn_config") or {}, f"{where}: denoise_fn_config"
    missing = [key for key in _REQUIRED if key not in options]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing. Take the config.yml that belongs to the checkpoint.")
    check_options(options, _NETWORK, where)
    base = options["base_channel"]
    channels = [int(factor * base) for factor in options["channel_multiplier"]]
    if channels[0] != base:
        raise UserError(
            f"{where}: channel_multiplier: met {options['channel_multiplier']}, allowed: those that begin with 1. "
            "UNet2DModel's time embedding is as wide as its first level. Choose another model."
        )
    attended = [2**level in options["attention_resolutions"] for level in range(len(channels))]
    attended_widths = {*itertools.compress(channels, attended), channels[-1]}  # the last is the middle block's
    return {
        "sample_size": image_size,
        "in_channels": 3,
        "out_channels": 6 if options.get("learn_sigma", False) else 3,
        "block_out_channels": channels,
        "layers_per_block": options["num_residual_blocks_of_a_block"],
        "down_block_types": ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attended],
        "up_block_types": ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attended)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": _head_width(options, attended_widths, where),
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,  # without it the attention of the middle block has no norm
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "dropout": options.get("dropout", 0.0),
    }


def _head_width(options: Mapping[str, Any], widths: Collection[int], where: str) -> int | None:
    """Channels per attention head, the same for all ``widths``; None for one head as wide as its level."""
    heads, head_width = options["num_heads"], options["head_channel"]
    if head_width == -1 and heads == 1:
        return None
    head_widths = {width / heads for width in widths} if head_width == -1 else {head_width}
    if len(head_widths) > 1 or any(width % w for width in widths for w in head_widths):
        raise UserError(
            f"{where}: met num_heads: {heads}, head_channel: {head_width}, allowed: one head per level, or heads "
            f"of one width that divides the widths of all attention levels ({sorted(widths)}). UNet2DModel "
            "expresses no other. Choose another model."
        )
    return int(head_widths.pop())


def key_map(config: Mapping[str, Any], names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Which tensors of `UNet2DModel` each tensor of the guided-diffusion network becomes.

    Args:
        config: what `unet_config` returned.
        names: tensors of the `UNet2DModel` (a residual block has a shortcut only where its width changes).
    Returns:
        One name for most tensors; three, for query, key and value, for an attention's ``qkv``.
    """
    layers = dict(_ENDS)
    for theirs, ours in _blocks(config):
        inner = _ATTENTION if ".attentions." in ours else _RESIDUAL
        layers |= {f"{theirs}.{a}": tuple(f"{ours}.{b}" for b in bs) for a, bs in inner.items()}
    tensors = {
        f"{theirs}.{kind}": tuple(f"{layer}.{kind}" for layer in ours)
        for theirs, ours in layers.items()
        for kind in ("weight", "bias")
    }
    return {theirs: ours for theirs, ours in tensors.items() if ours[0] in names}


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of the residual blocks and attentions, theirs and ours, in running order."""
    attended = [name.startswith("Attn") for name in config["down_block_types"]]
    levels, depth = len(attended), config["layers_per_block"]
    number = itertools.count(1)
    for level in range(levels):
        for layer in range(depth):
            block = f"input_blocks.{next(number)}"
            yield f"{block}.0", f"down_blocks.{level}.resnets.{layer}"
            if attended[level]:
                yield f"{block}.1", f"down_blocks.{level}.attentions.{layer}"
        if level < levels - 1:
            yield f"input_blocks.{next(number)}.0", f"down_blocks.{level}.downsamplers.0"
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    number = itertools.count()
    for up, level in enumerate(reversed(range(levels))):
        for layer in range(depth + 1):
            block = f"output_blocks.{next(number)}"
            yield f"{block}.0", f"up_blocks.{up}.resnets.{layer}"
            if attended[level]:
                yield f"{block}.1", f"up_blocks.{up}.attentions.{layer}"
            if level > 0 and layer == depth:
                yield f"{block}.{1 + attended[level]}", f"up_blocks.{up}.upsamplers.0"


def convert(
    state: Mapping[str, torch.Tensor], keys: Mapping[str, tuple[str, ...]], head_width: int | None
) -> dict[str, torch.Tensor]:
    """Tensors of a guided-diffusion network under the names of `UNet2DModel`.

    Args:
        state: the tensors that ``keys`` (from `key_map`) names. The rows of a ``qkv`` are laid out head by head,
            and within each head query, key, value.
        head_width: channels per attention head; None for one head.
    """
    converted = {}
    for theirs, ours in keys.items():
        tensor = state[theirs]
        if len(ours) == 1:
            converted[ours[0]] = tensor
            continue
        width = head_width or len(tensor) // 3
        by_head = tensor.unflatten(0, (-1, 3, width))
        for part, name in enumerate(ours):
            converted[name] = by_head[:, part].flatten(0, 1)
    return converted
