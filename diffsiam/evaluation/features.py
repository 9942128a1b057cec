"""Features of one data set by one frozen encoder, extracted once for every protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.errors import UserError
from diffsiam.evaluation import store
from diffsiam.models import encoder as encoders
from diffsiam.models import segments
from diffsiam.params import Features, Runtime
from diffsiam.training.methods import METHODS

_PIXELS = 2**21  # that fill a GPU and leave room in its memory for other jobs: 2 048 images of 32x32


def run(encoder: Path, data: Path, cfg: Features, rt: Runtime, out: Path, *, mirror: bool = False) -> None:
    """Write the features of ``data``'s train and test images: frozen encoder, images un-augmented.

    Args:
        encoder: encoder.safetensors or encoder_ema.safetensors, beside its config.json.
        data: folder of a prepared data set.
        out: the .npz file to write.
        mirror: add those of the train images' mirror images.
    Raises:
        UserError: the images have another size than the encoder was trained on.
    """
    device = runtime.select_device(rt, steady=False)  # a few passes, and the last batch has a shape of its own
    model, side = load_encoder(encoder)
    model.to(device).to(memory_format=torch.channels_last)
    arrays: list[np.ndarray] = []
    for split in ("train", "test"):
        images = runtime.read_array(data / f"images_{split}.npy")
        if images.shape[1:] != (side, side, 3):
            raise UserError(
                f"{data}: images of {images.shape[1]}x{images.shape[2]}, but {encoder} was trained on {side}x{side}. "
                "Set data.image_size to one value for both; Snakemake then makes again what has the other."
            )
        arrays += [extract(model, images, cfg.batch_size, device), runtime.read_array(data / f"labels_{split}.npy")]
    mirrored = None
    if mirror:
        images = runtime.read_array(data / "images_train.npy")
        mirrored = extract(model, images, cfg.batch_size, device, mirror=True)
    store.write(out, *arrays, mirrored=mirrored, edges=edges(runtime.read_json(encoder.parent / "config.json")))


def edges(config: dict[str, Any]) -> np.ndarray | None:
    """The edges of z's segments, of an encoder with this config.json; None where its method has no segments, or one."""
    method = METHODS.get(config.get("method", ""))
    if method is None or not (method.segment or method.coded) or config.get("segments", 0) < 2:
        return None
    return segments.recorded_edges(config).numpy()


def load_encoder(weights: Path) -> tuple[nn.Module, int]:
    """An encoder in evaluation mode, and the side in pixels of the images that it takes."""
    config = runtime.read_json(weights.parent / "config.json")
    if config.get("encoder") == "unet":
        from diffsiam.diffusion import frozen  # with diffusers, which takes seconds to import

        model: nn.Module = frozen.recorded(config)
    else:
        model = encoders.recorded(config)
    try:
        model.load_state_dict(runtime.load_weights(weights))
    except RuntimeError as e:
        raise UserError(f"{weights}: does not fit the config.json beside it: {e}") from None
    return model.eval().requires_grad_(False), config["image_size"]


@torch.inference_mode()
def extract(
    model: nn.Module, images: np.ndarray, batch_size: int, device: torch.device, *, mirror: bool = False
) -> np.ndarray:
    """Features (N, d) float32 of uint8 images (N, H, W, 3), or of their mirror images, in full precision whatever the
    training's was.

    A GPU takes more than ``batch_size`` images at a time where they are small: `_PIXELS` of them.
    """
    if device.type == "cuda":
        batch_size = max(batch_size, _PIXELS // (images.shape[1] * images.shape[2]))
    blocks: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        block = torch.from_numpy(images[start : start + batch_size]).to(device)
        blocks.append(model(pixels.to_float(block.flip(2) if mirror else block)))
    return torch.cat(blocks).cpu().numpy()
