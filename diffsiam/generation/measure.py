"""What an edit changed: attribute classifiers on pixels, and the numbers that are taken by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.images import Images
from diffsiam.errors import UserError
from diffsiam.evaluation.probmask import average_precision
from diffsiam.models.encoder import Encoder
from diffsiam.params import PixelClassifier
from diffsiam.training.inputs import Inputs
from diffsiam.training.step import Scheduled, Step

_BATCH = 256  # images that are judged at a time

Labels = NDArray[np.uint8]


class AttributeNet(nn.Module):
    """A ResNet-10 with a logit for every attribute of an image, or for every value of its factors (`factors`)."""

    def __init__(self, width: int, image_size: int, outputs: int) -> None:
        super().__init__()
        self.encoder = Encoder(width, image_size)
        self.head = nn.Linear(8 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to logits (N, A)."""
        return self.head(self.encoder(x))

    @torch.no_grad()
    def logits(self, images: Tensor, device: torch.device) -> Tensor:
        """(N, A) on the CPU, for uint8 images (N, H, W, 3)."""
        return torch.cat([self(pixels.to_float(block.to(device))).cpu() for block in images.split(_BATCH)])

    def probabilities(self, images: Tensor, device: torch.device) -> Tensor:
        """Of each attribute, as `logits`."""
        return self.logits(images, device).sigmoid()


Loss = Callable[[Tensor, Tensor], Tensor]  # of logits (B, A) and labels (B, ...)


class _Fit(nn.Module):
    """The loss of a batch of images and labels."""

    def __init__(self, net: AttributeNet, loss: Loss) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, labels = batch
        return {"loss": self.loss(self.net(x), labels)}


def _each_attribute(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels.float())


def train(
    images: Images,
    labels: NDArray[np.integer],
    cfg: PixelClassifier,
    device: torch.device,
    *,
    captured: bool,
    outputs: int | None = None,
    loss: Loss = _each_attribute,
) -> AttributeNet:
    """Fit an `AttributeNet` to images (N, H, W, 3) and labels (N, A) in {0, 1}: cross-entropy, Adam, half a cosine.

    Args:
        captured: whether steps are replays of a CUDA graph.
        outputs, loss: for labels that are no attributes: the number of logits, and their loss.
    """
    torch.manual_seed(runtime.derive_seed(cfg.seed, "classifier/weights"))
    net = AttributeNet(cfg.width, images.shape[1], outputs or labels.shape[1])
    net = net.to(device).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), fused=True, capturable=device.type == "cuda")
    rate = Scheduled(adam, lambda s: cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * s / cfg.steps)))
    given = Inputs(images, cfg.batch_size, cfg.seed, device, labels=torch.from_numpy(labels))
    fit = _Fit(net, loss)
    step = Step(
        fit, fit, lambda inputs: (pixels.to_float(inputs.images()), inputs.labels()), given, [rate], {},
        ema_decay=0.0, grad_clip=None, dtype=torch.float32,
    )  # fmt: skip
    if captured:
        step.capture()
    progress = runtime.Progress(cfg.steps, "classifier", "steps")
    for number in range(cfg.steps):
        step.load(number)
        step.take()
        progress.update()
    progress.close()
    return net.eval()


def scores(net: AttributeNet, images: Tensor, labels: Labels, device: torch.device) -> list[float]:
    """Average precision of each attribute on uint8 images (N, H, W, 3)."""
    predicted = net.probabilities(images, device).numpy()
    return [average_precision(labels[:, a], predicted[:, a]) for a in range(labels.shape[1])]


def save(path: Path, net: AttributeNet, facts: dict[str, object]) -> None:
    """Write the weights, and ``facts`` beside them, which hold ``width``, ``image_size`` and ``attributes``."""
    runtime.save_weights(path, net.state_dict())
    runtime.write_json(path.with_suffix(".json"), facts)


def load(path: Path, names: Sequence[str], outputs: int | None = None) -> AttributeNet:
    """What `save` wrote; a `UserError` where it was trained on other attributes than ``names``."""
    facts = runtime.read_json(path.with_suffix(".json"))
    if facts["attributes"] != list(names):
        met = ", ".join(facts["attributes"])
        raise UserError(f"{path}: knows the attributes {met}; the data has {', '.join(names)}.")
    net = AttributeNet(facts["width"], facts["image_size"], outputs or len(names))
    net.load_state_dict(runtime.load_weights(path))
    return net.eval()


# ---------------------------------------------------------------------------------------------------- the numbers
def round_trip(images: Tensor, returned: Tensor) -> dict[str, float]:
    """Mean squared error and mean peak signal-to-noise ratio in dB of images (N, 3, H, W) in [-1, 1].

    ``returned`` is clamped to [-1, 1] as pictures are when they are stored.
    """
    mse = (images - returned.clamp(-1, 1)).square().mean(dim=(1, 2, 3)).double()
    psnr = 10 * torch.log10(4 / mse.clamp_min(1e-12))
    return {"mse": float(mse.mean()), "psnr": float(psnr.mean())}


def exclusive(labels: Labels) -> NDArray[np.bool_]:
    """(A, A): attributes that no image has together (one colour and another), and each with itself."""
    counts = labels.astype(np.int64)
    return (counts.T @ counts == 0) | np.eye(labels.shape[1], dtype=bool)


def manipulated(change: NDArray[np.float64], attribute: int, sign: int, same: NDArray[np.bool_]) -> dict[str, float]:
    """How far an edit moved its attribute, and the others.

    Args:
        change: probabilities of the edited images less those of the reconstructions, (N, A).
        attribute: the intended one.
        sign: 1 where the edit pushes towards the attribute, -1 where away from it.
        same: from `exclusive`; attributes that exclude the intended one must move with it and count as neither.
    Returns:
        ``intended``: mean change in the intended direction; ``others``: mean absolute change of the others.
    """
    others = np.abs(change[:, ~same[attribute]]).mean()
    return {"intended": float(sign * change[:, attribute].mean()), "others": float(others)}


def partners(count: int) -> NDArray[np.int64]:
    """The image that each of ``count`` is paired with, (count,): the next of its half, the even or the odd ones.

    So the halves of `exchanged` share no image. An image that is alone in its half is its own partner.
    """
    found = np.arange(count)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        found[half] = np.roll(found[half], -1)
    return found


def exchanged(
    change: NDArray[np.float64], difference: NDArray[np.int64], same: NDArray[np.bool_]
) -> tuple[int, dict[str, float]] | None:
    """Which attribute a range of segments carries, and how cleanly: chosen on the even pairs, measured on the odd.

    Args:
        change: probabilities of the counterfactuals at scale 1 less those of the same with an empty range, (N, A).
        difference: label of the other image (`partners`) less that of the image, (N, A) in {-1, 0, 1}.
        same: from `exclusive`.
    Returns:
        The attribute that moves farthest towards the other image's label where the two differ, with ``intended`` (that
        mean move, in [-1, 1]) and ``others`` (mean absolute change of attributes that do not exclude it); None where
        too few pairs differ in anything.
    """
    moved = _towards(change[::2], difference[::2])
    if np.isnan(moved).all():
        return None
    chosen = int(np.nanargmax(moved))
    intended = float(_towards(change[1::2], difference[1::2])[chosen])
    others = float(np.abs(change[1::2][:, ~same[chosen]]).mean())
    return None if math.isnan(intended) else (chosen, {"intended": intended, "others": others})


def _towards(change: NDArray[np.float64], difference: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean move towards the other label over the pairs that differ, (A,); NaN where none do."""
    count = (difference != 0).sum(axis=0)
    return np.where(count > 0, (change * difference).sum(axis=0) / np.maximum(count, 1), np.nan)
