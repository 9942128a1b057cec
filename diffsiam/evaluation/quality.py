"""How near images come to others: pixel by pixel, by structure, by what a published network sees, and as sets.

LPIPS and the Inception features are torchmetrics' and torch-fidelity's, by weights that `hub.found` looks for. SSIM is
ours: PDAE's and Diff-AE's pads with zeros, while scikit-image's and torchmetrics' leave the border out. So is the
Frechet distance: as a sum of singular values it is exact where images are fewer than features, where the usual root of
a product of matrices is not, and two lines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

SMALLEST = 32  # pixels a side below which AlexNet's poolings leave nothing
_BATCH = 64  # images that are looked at at a time
_RADIUS, _SIGMA = 5, 1.5  # of SSIM's window, in pixels
_C1, _C2 = 0.01**2, 0.03**2  # SSIM's constants for images in [0, 1]

Features = NDArray[np.float64]


def mse(images: Tensor, others: Tensor) -> float:
    """Mean squared error of images (N, 3, H, W)."""
    return float((images - others).square().mean(dim=(1, 2, 3)).double().mean())


def ssim(images: Tensor, others: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004), at most 1, over the images, their pixels and channels.

    A Gaussian window of 11x11 pixels and a deviation of 1.5 on each channel, zeros beyond the border, as PDAE takes it.

    Args:
        images, others: (N, 3, H, W) in [0, 1].
    """
    blocks = zip(images.split(_BATCH), others.split(_BATCH), strict=True)
    return float(torch.cat([ssim_map(*block).mean(dim=(1, 2, 3)) for block in blocks]).double().mean())


def ssim_map(images: Tensor, others: Tensor) -> Tensor:
    """What `ssim` is the mean of, (N, 3, H, W)."""
    line = torch.exp(-0.5 * (torch.arange(-_RADIUS, _RADIUS + 1.0) / _SIGMA).square())
    window = (torch.outer(line, line) / line.sum() ** 2)[None, None].to(images)

    def blurred(x: Tensor) -> Tensor:
        return functional.conv2d(x.flatten(0, 1)[:, None], window, padding=_RADIUS).view(x.shape)

    mu, nu = blurred(images), blurred(others)
    variance, its = blurred(images * images) - mu * mu, blurred(others * others) - nu * nu
    covariance = blurred(images * others) - mu * nu
    structure = (2 * covariance + _C2) / (variance + its + _C2)
    return (2 * mu * nu + _C1) / (mu * mu + nu * nu + _C1) * structure


@torch.no_grad()
def lpips(images: Tensor, others: Tensor, device: torch.device) -> float:
    """Mean LPIPS by AlexNet (Zhang et al. 2018) of images (N, 3, H, W) in [-1, 1], H and W at least `SMALLEST`;
    `hub.found` looks for its weights."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)
    for one, other in zip(images.split(_BATCH), others.split(_BATCH), strict=True):
        metric.update(one.to(device), other.to(device))
    return float(metric.compute())


def inception(path: Path, device: torch.device) -> Callable[[Tensor], Features]:
    """The features behind FID, (N, 2048), of uint8 images (N, H, W, 3), by weights that `hub.found` returned."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device).eval()

    @torch.no_grad()
    def look(images: Tensor) -> Features:
        blocks = images.permute(0, 3, 1, 2).split(_BATCH)
        return torch.cat([network(block.to(device))[0].double().cpu() for block in blocks]).numpy()

    return look


def frechet(features: Features, others: Features) -> float:
    """The Frechet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the Gaussians of two sets of features,
    (N, d) and (M, d), N and M at least 2; of `inception`'s features it is FID (Heusel et al. 2017).

    With C = R'R, the trace of the root is the sum of the singular values of R1 R2'.
    """
    one, two = (
        np.asarray(np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r")) for x in (features, others)
    )
    root = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    means = np.square(features.mean(axis=0) - others.mean(axis=0)).sum()
    return float(means + np.square(one).sum() + np.square(two).sum() - 2 * root)
