"""What the diffusion model makes of noise alone, and whether it copies: distances to the nearest training image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_argmin_min

from diffsiam import runtime
from diffsiam.data.images import Images, open_images
from diffsiam.diffusion import ddim
from diffsiam.diffusion.schedule import Schedule
from diffsiam.errors import UserError
from diffsiam.generation.figures import to_stored
from diffsiam.models.unet import DiffusionModel
from diffsiam.params import Generation, Runtime

_REFERENCE = 1000  # test images whose own distances are the measure of a copy
_BLOCK = 1024  # training images that are compared at a time
_COPY = 0.01  # a sample nearer than this share of them copies


def draw(
    cfg: Generation, rt: Runtime, data: Path, diffusion: Path, *, count: int, seed: int, root: Path
) -> dict[str, Any]:
    """Samples of the diffusion model in ``diffusion``, trained on the prepared data set ``data``.

    Returns:
        images (count, side, side, 3) uint8; distances (count,) to the nearest training image or its mirror image, root
        mean squares in grey levels of 255; reference (R,), the same of test images; copied (count,), whether a
        sample is nearer than 99 of 100 test images.
    Raises:
        UserError: ``count`` below 1; a file is missing.
    """
    if count < 1:
        raise UserError(f"--count {count}: ask for 1 sample or more.")
    device = runtime.select_device(rt)
    meta = runtime.read_json(data / "meta.json")
    dm, table, side = DiffusionModel.load(diffusion).to(device).eval(), Schedule().to(device), meta["image_size"]
    x_T = ddim.noise_like(torch.empty(count, 3, side, side), seed, "samples", range(count))
    progress, made = runtime.Progress(count, "sample", "images"), []
    with torch.no_grad():
        for part in x_T.split(cfg.batch_size):
            x = ddim.sample(dm.predict_noise, part.to(device), cfg.steps, table, clip=cfg.clip, solver=cfg.solver)
            made.append(to_stored(x))
            progress.update(len(part))
    progress.close()
    images = np.concatenate(made)
    test = open_images(data / "images_test.npy", root)[torch.arange(min(_REFERENCE, meta["counts"]["test"]))].numpy()
    distances = nearest(np.concatenate([images, test]), open_images(data / "images_train.npy", root))
    reference = distances[count:]
    copied = distances[:count] < np.quantile(reference, _COPY)
    return {"images": images, "distances": distances[:count], "reference": reference, "copied": copied}


def summary(drawn: dict[str, Any]) -> str:
    """What `draw` found, in a line."""
    own, reference = drawn["distances"], drawn["reference"]
    return (
        f"{len(own)} samples, {drawn['copied'].sum()} of them copies of a training image; distance to the nearest one "
        f"{np.median(own):.1f} grey levels (median; smallest {own.min():.1f}), of {len(reference)} test images "
        f"{np.median(reference):.1f} (smallest {reference.min():.1f})"
    )


def nearest(images: NDArray[np.uint8], train: Images) -> NDArray[np.float64]:
    """Root mean squared distance of each image to the nearest of ``train`` or its mirror image, in grey levels."""
    flat, found = images.reshape(len(images), -1).astype(np.float32), np.full(len(images), np.inf)
    for rows in torch.arange(len(train)).split(_BLOCK):  # a data set need not fit the memory
        block = train[rows].numpy()
        for seen in (block, block[:, :, ::-1]):
            other = seen.reshape(len(seen), -1).astype(np.float32)
            found = np.minimum(found, pairwise_distances_argmin_min(flat, other)[1])
    return found / np.sqrt(flat.shape[1])
