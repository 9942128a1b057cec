"""What an edit changed: attribute classifiers on pixels, and the numbers that are taken by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.images import Images
from diffsiam.errors import UserError
from diffsiam.evaluation.metrics import Z95
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
class Mean(NamedTuple):
    """A mean over images or pairs of them, the half-width of its 95 % interval, NaN of one alone, and how many they
    were."""

    value: float
    ci95: float
    images: int


def rows(what: str, subject: str, attribute: str, found: Mapping[str, float | Mean | None]) -> list[dict[str, Any]]:
    """Rows of `figures.COLUMNS` less the names, one for each metric that there is."""
    shared = {"measure": what, "subject": subject, "attribute": attribute}
    return [
        {**shared, "metric": metric, **(value._asdict() if isinstance(value, Mean) else {"value": value})}
        for metric, value in found.items()
        if value is not None
    ]


def mean(values: NDArray[np.float64]) -> Mean | None:
    """Of those that are no NaN; the interval is 1.96 std / sqrt(count). None where there are none."""
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    half = Z95 * known.std() / math.sqrt(known.size) if known.size > 1 else math.nan
    return Mean(float(known.mean()), float(half), known.size)


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


def moved(change: NDArray[np.float64], attribute: int, same: NDArray[np.bool_]) -> dict[str, Mean | None]:
    """How far edits move an attribute, and how far all others, whatever the direction.

    Args:
        change: probabilities of the edited images less those of the images before, (N, A).
        attribute: a, the one in question.
        same: from `exclusive`.
    Returns:
        ``moved_own``, mean_i |change[i, a]|, and ``moved_others``, mean_i of the mean of |change[i, b]| over the b that
        do not exclude a; both in [0, 1], 1 from certainly without to certainly with it.
    """
    size, others = np.abs(change), ~same[attribute]
    return {
        "moved_own": mean(size[:, attribute]),
        "moved_others": mean(size[:, others].mean(axis=1)) if others.any() else None,
    }


_ROUNDING = 1e-5  # root mean square of a change of images in [-1, 1], a thousandth of a grey level: none at all


def coarseness(change: Tensor) -> NDArray[np.float64]:
    """How coarse each change of an image is: where its energy lies among spatial frequencies, in one number.

    With P(u, v) the squared absolute value of the change's Fourier transform, summed over colours, u and v in cycles
    per image, and r = sqrt(u^2 + v^2), at most R = side / sqrt(2),

        coarseness = 1 - sum P log2(max(r, 1)) / (sum P log2 R)

    is 1 where all pixels change alike, or along one wave as wide as the image, and 0 for a checkerboard of single
    pixels. Every octave between them counts alike: a wave of half the width is 1 / log2 R finer.

    Args:
        change: (N, 3, side, side), images in [-1, 1] less those before the edit, not rounded to grey levels.
    Returns:
        (N,) in [0, 1]; NaN where nothing changed.
    """
    side = change.shape[-1]
    power = np.abs(np.fft.fft2(change.double().numpy())) ** 2
    cycles = np.fft.fftfreq(side, 1 / side)
    octave = np.log2(np.hypot(cycles[:, None], cycles).clip(min=1)) / math.log2(side / math.sqrt(2))
    energy = power.sum(axis=(1, 2, 3))  # (3 side^4) times the mean square
    changed = energy > 3 * side**4 * _ROUNDING**2
    fine = (power * octave).sum(axis=(1, 2, 3)) / np.where(changed, energy, 1)
    return np.where(changed, 1 - fine, np.nan)


def trend(coarse: NDArray[np.float64], ranges: Sequence[tuple[int, int]]) -> Mean | None:
    """Whether later segments change coarser things: Spearman's rank correlation, over the ranges, of the middle of a
    range with the coarseness of its change; one for each pair of images, and their mean in [-1, 1].

    Above 0 is what the thesis claims, below 0 the opposite.

    Args:
        coarse: of each range's changes, (R, N), from `coarseness`; a pair counts where none of them is NaN.
        ranges: R half-open ranges of segments.
    """
    whole = coarse[:, ~np.isnan(coarse).any(axis=0)]
    middle = scipy.stats.rankdata([start + stop for start, stop in ranges])
    if len(set(middle.tolist())) < 2 or not whole.size:
        return None
    ranks = scipy.stats.rankdata(whole, axis=0)
    middle, ranks = middle - middle.mean(), ranks - ranks.mean(axis=0)
    spread = np.sqrt((middle**2).sum() * (ranks**2).sum(axis=0))
    return mean(np.divide(middle @ ranks, spread, out=np.full(len(spread), np.nan), where=spread > 0))
