"""How well images come back from z, and what z holds: quality of autoencoding, Frechet distances, TAD.

Rows of `figures.COLUMNS` less the names; those on other images than the measured ones have ``images`` themselves.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffsiam.data import pixels
from diffsiam.data.images import Images
from diffsiam.diffusion import ddim
from diffsiam.evaluation import detectors, hub, quality
from diffsiam.evaluation.probmask import represent
from diffsiam.generation.model import Guided

_BLOCK = 1000  # images that are sampled and looked at before the next

Rows = list[dict[str, Any]]
Indices = NDArray[np.int64]


def judges(side: int, frechet: bool) -> dict[str, Path]:
    """The weights of the metrics that can be taken of images of ``side`` pixels, FID where ``frechet`` asks for it; a
    line says what is missing. A `UserError` where a file is there and another one."""
    wanted = ["fid"] if frechet else []
    if side >= quality.SMALLEST:
        wanted.append("lpips")
    else:
        print(
            f"No lpips among the numbers: AlexNet needs {quality.SMALLEST} pixels a side, met {side}.", file=sys.stderr
        )
    paths = {metric: hub.found(metric) for metric in wanted}
    return {metric: path for metric, path in paths.items() if path is not None}


def from_noise(model: Guided, z: Tensor, x0: Tensor, indices: Indices) -> Tensor:
    """Images sampled given z (N, d) from noise as ``x0``, a draw for each of ``indices``."""
    return model.sample(ddim.noise_like(x0, model.cfg.pairs.seed, "random_x_T", indices.tolist()), z)


def scores(x0: Tensor, returned: Tensor, device: torch.device, *, lpips: bool) -> dict[str, float]:
    """Of images (N, 3, side, side) in [-1, 1] and what came back: MSE and SSIM as PDAE and Diff-AE take them, of
    [0, 1] and not clamped, and LPIPS."""
    one, other = (x0 + 1) / 2, (returned + 1) / 2
    found = {"mse": quality.mse(one, other), "ssim": quality.ssim(one, other)}
    return found | ({"lpips": quality.lpips(x0, returned.clamp(-1, 1), device)} if lpips else {})


def distances(model: Guided, images: Images, indices: Indices, weights: Path) -> Rows:
    """FID of test images and of what comes of them: from their own x_T, from noise, and from noise by the diffusion
    model alone, which knows nothing of them."""
    look, seen = quality.inception(weights, model.device), defaultdict(list)
    for block in np.array_split(indices, -(-len(indices) // _BLOCK)):
        x0 = pixels.to_float(images[torch.from_numpy(block)])
        z, noise = model.encode(x0), ddim.noise_like(x0, model.cfg.pairs.seed, "frozen_model", block.tolist())
        made = {
            "images": x0,
            "inferred_x_T": model.sample(model.invert(x0, z), z),
            "random_x_T": from_noise(model, z, x0, block),
            "frozen_model": model.sample(noise, None),
        }
        for name, x in made.items():
            seen[name].append(look(pixels.to_uint8(x)))
    features = {name: np.concatenate(parts) for name, parts in seen.items()}
    shown = features.pop("images")
    shared = {"measure": "frechet", "attribute": "", "metric": "fid", "images": len(indices)}
    return [{**shared, "subject": name, "value": quality.frechet(shown, made)} for name, made in features.items()]


def told(model: Guided, images: Images, labels: NDArray[np.uint8]) -> Rows:
    """TAD of the first test images, by the first principal component of each segment, and by each dimension of z."""
    images, labels = images[: detectors.IMAGES], labels[: detectors.IMAGES]
    z = represent(model.encoder, images, model.cfg.batch_size, model.device)
    units = {"segments": detectors.components(z, model.edges.numpy()), "dimensions": z}
    shared = {"measure": "tad", "attribute": "", "images": len(z)}
    found = {name: detectors.folds(u, labels) for name, u in units.items()}
    return [
        {**shared, "subject": name, "metric": metric, "value": value}
        for name, values in found.items()
        for metric, value in values.items()
    ]
