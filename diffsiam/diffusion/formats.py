"""The formats that published diffusion models come in, and what of them the pipeline can use.

What is read becomes a `UNet2DModel` that predicts noise in three channels from images in [-1, 1] and a timestep index
in 0..999, under beta linear from 1e-4 to 0.02 (as in DDPM). A network that predicts the variance as well, in three
further output channels, loses these here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diffsiam import weights
from diffsiam.diffusion import guided
from diffsiam.errors import UserError

if TYPE_CHECKING:
    import torch

# What the rest of the pipeline relies on; a key that is not there has diffusers' default, which is allowed.
_UNET_OPTIONS: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",),
    "in_channels": (3,),
    "out_channels": (3, 6),
    "time_embedding_type": ("positional",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
_SCHEDULER_OPTIONS: dict[str, tuple[Any, ...]] = {
    "_class_name": tuple(  # those that the keys below describe; flow matching's and others have none of these keys
        f"{name}Scheduler"
        for name in (
            *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "DPMSolverMultistep"),
            *("DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete"),
            "LMSDiscrete",
        )
    ),
    "num_train_timesteps": (1000,),
    "beta_schedule": ("linear",),
    "beta_start": (1e-4,),
    "beta_end": (0.02,),
    "trained_betas": (None,),
    "prediction_type": ("epsilon",),
    "rescale_betas_zero_snr": (False,),
    "use_flow_sigmas": (False,),
}
_ASSUMED = (
    "it is taken to predict noise over 1000 steps of beta linear from 0.0001 to 0.02. If it was trained otherwise, "
    "choose another model."
)

# What diffusers called the layers of an attention when the first models were published.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclasses.dataclass(frozen=True)
class File:
    """A file, and what it is called in messages: its address, where it was downloaded."""

    path: Path
    title: str


Network = tuple[dict[str, Any], dict[str, "torch.Tensor"]]  # config and tensors of a UNet2DModel


def read_diffusers(config: File, tensors: File, schedulers: Sequence[File], image_size: int) -> Network:
    """A model in diffusers' own layout; every one of its ``schedulers``, which may be none, must be our noise schedule.

    Raises:
        UserError: a file cannot be read, or they describe a network or a schedule that the pipeline cannot use.
    """
    where = config.title
    met = _read_mapping(config)
    guided.check_options(met, _UNET_OPTIONS, where)
    sizes = (image_size, [image_size, image_size], None)
    guided.check_options(met, {"sample_size": sizes}, where, guided.SIZE_REMEDY)
    for scheduler in schedulers:
        guided.check_options(_read_mapping(scheduler), _SCHEDULER_OPTIONS, scheduler.title)
    if not schedulers:
        print(f"{where}: no scheduler_config.json beside it or in scheduler/ next to it; {_ASSUMED}", file=sys.stderr)
    full, shapes = _resolve(met | {"sample_size": image_size}, where)
    state = weights.read(tensors.path, tensors.title)
    for key in list(state):
        layer = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", key)
        if layer:
            state[f"{layer[1]}{_OLD_ATTENTION[layer[2]]}{layer[3]}"] = state.pop(key)
    return _noise_only(full, _part(state, shapes, tensors.title, where))


def _part(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], title: str, config: str
) -> dict[str, torch.Tensor]:
    remedies = "Take both files from the same model.", "Keep one of them in the file."
    own = weights.part(state, weights.Network(f"the network in {config}", shapes, *remedies), title)
    return {name: tensor.float() for name, tensor in own.items()}


def read_guided(config: File, tensors: File, image_size: int) -> Network:
    """A guided-diffusion model as PDAE publishes it, converted; see `read_diffusers`."""
    where, title = config.title, tensors.title
    options = _read_mapping(config)
    try:
        met = guided.unet_config(options, image_size, where)
    except (TypeError, ValueError) as e:  # a value of another type
        raise UserError(f"{where}: describes no network ({e}). Correct it or choose another model.") from None
    if not options.get("diffusion_config"):
        print(f"{where}: no diffusion_config, the noise schedule; {_ASSUMED}", file=sys.stderr)
    full, shapes = _resolve(met, where)
    keys = guided.key_map(met, shapes)
    checkpoint = weights.load(tensors.path, title)
    if not isinstance(checkpoint, dict) or guided.EMA_KEY not in checkpoint:
        there = ", ".join(map(str, checkpoint))[:200] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise UserError(
            f"{title}: {guided.EMA_KEY}, the averaged weights, missing; met {there}. "
            "Choose a checkpoint of the diffusion model's own training."
        )
    # an attention's layers are 1-D convolutions there and linear here
    state = {
        key: tensor.squeeze(-1) if tensor.ndim == 3 else tensor
        for key, tensor in weights.tensors(checkpoint[guided.EMA_KEY])
    }
    expected = {key: (len(ours) * shapes[ours[0]][0], *shapes[ours[0]][1:]) for key, ours in keys.items()}
    own = _part(state, expected, title, where)
    return _noise_only(full, guided.convert(own, keys, met["attention_head_dim"]))


def _read_mapping(file: File) -> dict[str, Any]:
    kind = file.path.suffix
    try:
        text = file.path.read_text(encoding="utf-8")
        # YAML reads JSON's 1e-06 as text
        value = json.loads(text) if kind == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{file.title}: not a mapping in {kind[1:]} format. Get the file again.")
    return value


def _resolve(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The config with diffusers' defaults filled in, and the shape of every tensor of its network."""
    import diffusers
    import torch

    try:
        with torch.device("meta"):  # names and shapes only
            model = diffusers.UNet2DModel.from_config(dict(config))
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as e:
        raise UserError(f"{where}: describes no UNet2DModel ({e}). Correct it or choose another model.") from None
    return json.loads(model.to_json_string()), {k: tuple(v.shape) for k, v in model.state_dict().items()}


def _noise_only(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Network:
    """The network with three output channels: of six, the last three are the variance."""
    return {**config, "out_channels": 3}, {
        key: tensor[:3] if key.startswith("conv_out.") else tensor for key, tensor in state.items()
    }
