"""Distances of images and of sets against scikit-image, SciPy, closed forms and literal sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchvision import models

from diffsiam.evaluation import hub, quality

CPU = torch.device("cpu")


def pair(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] with some structure, and the same under noise."""
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4), (side, side), mode="bilinear")
    return images, (images + 0.1 * torch.randn_like(images)).clamp(0, 1)


def test_mse_is_the_mean_over_pixels_channels_and_images() -> None:
    images, others = pair(3, 8)
    total = sum((float(a) - float(b)) ** 2 for a, b in zip(images.flatten(), others.flatten(), strict=True))
    assert quality.mse(images, others) == pytest.approx(total / (3 * 3 * 8 * 8))


def test_ssim_is_scikit_images_inside_the_border() -> None:
    images, others = pair(2, 24)
    found = quality.ssim_map(images, others).numpy()
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "full": True}
    for a, b, seen in zip(images.numpy(), others.numpy(), found, strict=True):
        _, whole = structural_similarity(a, b, channel_axis=0, **how)
        assert seen[:, 5:-5, 5:-5] == pytest.approx(whole[:, 5:-5, 5:-5], abs=2e-4)


def test_ssim_sees_zeros_beyond_the_border_and_is_the_mean_of_all_pixels() -> None:
    images, others = pair(quality._BATCH + 1, 12)
    x, y = images.double().numpy(), others.double().numpy()

    def blurred(a: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(a, 1.5, mode="constant", truncate=3.5, axes=(2, 3))

    mu, nu = blurred(x), blurred(y)
    top = (2 * mu * nu + 1e-4) * (2 * (blurred(x * y) - mu * nu) + 9e-4)
    below = (mu**2 + nu**2 + 1e-4) * (blurred(x * x) - mu**2 + blurred(y * y) - nu**2 + 9e-4)
    assert quality.ssim(images, others) == pytest.approx((top / below).mean(), rel=1e-4)
    assert quality.ssim(images, images) == pytest.approx(1)


# ------------------------------------------------------------------------------------------------- Frechet distance
def gaussian(count: int, mean: np.ndarray, root: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features whose sample mean and covariance are exactly ``mean`` and root' root."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    return mean + np.linalg.qr(x)[0] * np.sqrt(count - 1) @ root


def test_frechet_distance_of_gaussians_with_the_same_axes_is_their_closed_form() -> None:
    s, t = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5])
    m, n = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 4.0])
    one, two = gaussian(40, m, np.diag(s)), gaussian(70, n, np.diag(t), seed=1)
    assert quality.frechet(one, two) == pytest.approx(((m - n) ** 2).sum() + ((s - t) ** 2).sum())
    assert quality.frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_that_of_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    covariances = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    assert quality.frechet(one, two) == pytest.approx(expected)


def test_frechet_distance_of_fewer_images_than_features_is_exact() -> None:
    few = np.random.default_rng(0).normal(size=(5, 40))
    assert quality.frechet(few, few + 0.5) == pytest.approx(40 * 0.25)
    other = np.zeros((5, 40))
    other[:, :2] = 3 * few[:, :2]  # the root of the product is three times the covariance of this part
    part = few[:, :2].var(axis=0, ddof=1).sum()
    spread = few.var(axis=0, ddof=1).sum() + 9 * part - 2 * 3 * part
    assert quality.frechet(few, other) == pytest.approx(np.square(few.mean(0) - other.mean(0)).sum() + spread)


# ------------------------------------------------------------------------------------------------ published networks
@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def thin(network: torch.nn.Module, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Its random weights, with zeros that take no room for ``parts``."""
    state = network.state_dict()
    return {k: torch.zeros(1).expand(v.shape) if k.startswith(parts) else v for k, v in state.items()}


def test_lpips_is_the_weighted_distance_of_alexnets_normalised_features(cache: Path) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is optional: `pip install torchmetrics`")
    from torchmetrics.functional.image import lpips

    torch.manual_seed(0)
    network = models.alexnet()
    torch.save(thin(network, ("classifier",)), cache / hub.METRICS["lpips"].url.rsplit("/", 1)[1])
    linear = torch.load(Path(lpips.__file__).with_name("lpips_models") / "alex.pth", map_location="cpu")
    images, others = (2 * x - 1 for x in pair(3, 32))
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = torch.zeros(3)
    a, b = ((x - mean[:, None, None]) / std[:, None, None] for x in (images, others))
    found = 0
    for layer in network.features[:-1]:  # the last pool is not of LPIPS
        a, b = layer(a), layer(b)
        if isinstance(layer, torch.nn.ReLU):
            apart = (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square()
            total += (apart * linear[f"lin{found}.model.1.weight"]).sum(dim=1).mean(dim=(1, 2)).detach()
            found += 1
    assert found == 5
    assert quality.lpips(images, others, CPU) == pytest.approx(float(total.mean()), rel=1e-4)


def test_inception_features_are_torchvisions_but_for_the_pools_that_fid_has_otherwise(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is optional: `pip install torch-fidelity`")
    torch.manual_seed(0)
    network = models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for name, parameter in network.named_parameters():
        parameter.data *= 6**0.5 if "conv" in name else 1  # so that features do not fade on their way
    torch.save(thin(network, ("fc",)), cache / "inception.pth")
    images = (255 * pair(2, 299)[0]).byte()
    found = quality.inception(cache / "inception.pth", CPU)(images.permute(0, 2, 3, 1))

    def pool(x: Tensor, **how: int) -> Tensor:
        if x.shape[1] == 2048:  # the last block's
            return torch.nn.functional.max_pool2d(x, **how)
        return average(x, **how, count_include_pad=False)

    average = torch.nn.functional.avg_pool2d
    monkeypatch.setattr(torch.nn.functional, "avg_pool2d", pool)
    network.eval().fc = torch.nn.Identity()
    with torch.no_grad():
        expected = network((images.float() - 128) / 128).numpy()
    assert expected.std(axis=0).max() > 1e-3
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
