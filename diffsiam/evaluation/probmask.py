"""Attribute classifiers on few dimensions of z: ProbMask (Zhou et al. 2021) on a logistic regression.

Under results/probmask/<pretrain>/<method>/seed<k>/, for each attribute and number of dimensions d':
<attribute>_<d'>.safetensors, the masked classifier, and <attribute>_all.safetensors, a logistic regression on all of z:
    ``weight`` (d,) on standardised features, ``bias`` (1,), ``mean`` and ``std`` (d,) of the training features.
A .json beside each: attribute, masked, dims, indices of the dimensions, share of positive test images, and the average
    precisions on the test images of the masked classifier, of the one on all dimensions, and of an L1 logistic
    regression with (at most) d' weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.images import Images, open_images
from diffsiam.errors import UserError
from diffsiam.evaluation.features import load_encoder
from diffsiam.params import Attribute, ProbMask, Runtime

Array = NDArray[np.float32]
_EPSILON = 1e-6  # keeps log s finite at both ends
_MASKS = 16  # masks that a step draws


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A linear classifier ``weight . (z - mean) / std + bias``.

    Attributes:
        weight, mean, std: (d,) float32; ``std`` is 0 where a feature is constant, and ``weight`` there too.
        name: the attribute.
        masked: whether ProbMask chose its dimensions; else it is on all of z.
    """

    name: str
    weight: Array
    bias: float
    mean: Array
    std: Array
    masked: bool

    @property
    def dims(self) -> int:
        """d', or d where it is on all of z."""
        return int(np.count_nonzero(self.weight)) if self.masked else len(self.weight)


def run(
    encoder: Path,
    data: Path,
    cfg: ProbMask,
    rt: Runtime,
    out: Path,
    *,
    root: Path,
    attribute: str | None = None,
    dims: int = 16,
) -> None:
    """Fit the attribute classifiers of one encoder and write them to ``out``.

    Args:
        encoder: weights beside their config.json; the generative half takes encoder_ema.safetensors.
        data: folder of a prepared data set with attributes.
        root: `data.root`, where images that are streamed lie.
        attribute: this attribute with ``dims`` dimensions instead of those of ``cfg.attributes``.
    Raises:
        UserError: no attribute is asked for, or none of that name; fewer than one dimension or more than z has; an
            attribute that all images or none have.
    """
    device = runtime.select_device(rt)
    meta = runtime.read_json(data / "meta.json")
    names = check_attributes(meta, data)
    rows = [row for row in cfg.attributes if row.dataset == meta["dataset"]]
    if attribute is not None:
        rows = [Attribute(meta["dataset"], attribute, dims)]
    if not rows:
        raise UserError(
            f"{data}: no row of probmask.attributes is about {meta['dataset']}. Add one to params.yaml, or name an "
            f"attribute with --attribute. There are: {', '.join(names)}."
        )
    rows = [dataclasses.replace(row, name=names[find(row.name, names, data)]) for row in rows]
    model, _ = load_encoder(encoder)
    model.to(device).to(memory_format=torch.channels_last)
    parts = (open_images(data / f"images_{split}.npy", root) for split in ("train", "test"))
    train, test = (represent(model, images, cfg.batch_size, device) for images in parts)
    columns = [names.index(row.name) for row in rows]
    labels = {split: runtime.read_array(data / f"attributes_{split}.npy")[:, columns] for split in ("train", "test")}
    check_rows(rows, labels, train.shape[1], data)
    mean, std = train.mean(axis=0), train.std(axis=0)
    x, x_test = (standardize(part, mean, std) for part in (train, test))
    weights, biases = fit(x, labels["train"], [row.dims for row in rows], [row.name for row in rows], cfg, device)
    for i, row in enumerate(rows):
        masked = Classifier(row.name, weights[i], float(biases[i]), mean, std, masked=True)
        y, y_test = labels["train"][:, i], labels["test"][:, i]
        whole = Classifier(row.name, *logistic(x, y), mean, std, masked=False)
        sparse = l1_logistic(x, y, row.dims)
        scores = {"masked": x_test @ masked.weight, "all": x_test @ whole.weight, "l1": x_test @ sparse}
        facts = {
            "positive": float(y_test.mean()),
            "l1_dims": int(np.count_nonzero(sparse)),
            "average_precision": {name: average_precision(y_test, score) for name, score in scores.items()},
        }
        for stem, classifier in zip(row.stems, (masked, whole), strict=True):
            write(out / f"{stem}.safetensors", classifier, facts)


@torch.no_grad()
def represent(model: nn.Module, images: Images, batch_size: int, device: torch.device) -> Array:
    """z (N, d) of images (N, H, W, 3), arrays or streamed."""
    blocks = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return torch.cat([model(pixels.to_float(block.to(device))).cpu() for block in blocks]).numpy()


def fit(
    x: Array, labels: NDArray[np.uint8], dims: Sequence[int], names: Sequence[str], cfg: ProbMask, device: torch.device
) -> tuple[Array, Array]:
    """Logistic regressions whose weights pass through sampled masks (ProbMask), one for each column of ``labels``.

    Every weight has a keep-probability s, 1 at first. A step multiplies the weights by a sample of the binary concrete
    distribution sigmoid((log s - log(1 - s) + logistic noise) / tau), where tau falls from 1 to 0.03, and projects s
    onto the budget, which falls from d to d' by a cubic between 10 and 40 % of the steps. Each step draws several masks
    and gives each its part of the batch. The weights follow Adam; s follows plain gradient descent, to which the
    projection belongs: with Adam's per-entry rates it keeps the wrong dimensions.

    Args:
        x: standardised features (N, d).
        labels: (N, A) in {0, 1}.
        dims: d' of each attribute.
        names: they seed each attribute's masks, so that attributes may be fitted together or apart.
    Returns:
        Weights (A, d) with d' entries other than zero, those of largest s, and biases (A,).
    """
    features, y = torch.from_numpy(x).to(device), torch.from_numpy(labels).to(device, torch.float32)
    count, d = features.shape
    weight = torch.zeros(len(dims), d, device=device, requires_grad=True)
    bias = torch.zeros(len(dims), device=device, requires_grad=True)
    keep = torch.ones(len(dims), d, device=device, requires_grad=True)
    optimizers = (
        torch.optim.Adam([weight, bias], lr=cfg.learning_rate),
        torch.optim.SGD([keep], lr=cfg.mask_learning_rate),
    )
    order = runtime.generator(cfg.seed, "probmask/order")
    noise = [runtime.generator(cfg.seed, "probmask/mask", name) for name in names]
    final = torch.tensor(dims, device=device, dtype=torch.float32)
    for step in range(cfg.steps):
        progress = step / cfg.steps
        batch = torch.randint(count, (_MASKS, -(-cfg.batch_size // _MASKS)), generator=order).to(device)
        uniform = torch.stack([torch.rand(_MASKS, d, generator=g) for g in noise], dim=1).to(device)
        masked = weight * sample_mask(keep, uniform, temperature(progress))
        logits = torch.einsum("mbd,mad->mba", features[batch], masked) + bias
        loss = functional.binary_cross_entropy_with_logits(logits, y[batch], reduction="none").mean((0, 1)).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            keep.copy_(project(keep, budget(progress, d, final)))
    largest = keep.detach() - 1e-3 * _rank(weight.detach())  # ties by the size of the weight
    mask = torch.zeros_like(keep)
    for row, number in enumerate(dims):
        mask[row, largest[row].topk(number).indices] = 1
    return (weight * mask).detach().cpu().numpy(), bias.detach().cpu().numpy()


def sample_mask(keep: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Binary concrete sample in [0, 1] for keep-probabilities ``keep`` and uniform draws, tensors of one shape."""
    noise = torch.log(uniform + _EPSILON) - torch.log(1 - uniform + _EPSILON)
    return torch.sigmoid((torch.log(keep + _EPSILON) - torch.log(1 - keep + _EPSILON) + noise) / temperature)


def temperature(progress: float) -> float:
    """tau, where ``progress`` in [0, 1] is the share of the steps done."""
    return 0.97 * (1 - progress) + 0.03


def budget(progress: float, d: int, final: Tensor) -> Tensor:
    """Largest sum of the keep-probabilities, (A,), where ``progress`` in [0, 1] is the share of the steps done."""
    left = min(max((0.4 - progress) / 0.3, 0.0), 1.0)
    return final + (d - final) * left**3


def project(keep: Tensor, budget: Tensor) -> Tensor:
    """The nearest point to ``keep`` (A, d) with entries in [0, 1] and sums of at most ``budget`` (A,): a scalar,
    found by bisection, is subtracted from each row before clamping."""
    low, high = torch.zeros_like(budget), keep.amax(dim=1).clamp_min(0)
    for _ in range(40):
        middle = (low + high) / 2
        over = (keep - middle[:, None]).clamp(0, 1).sum(dim=1) > budget
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    inside = keep.clamp(0, 1).sum(dim=1) <= budget
    return (keep - torch.where(inside, 0, high)[:, None]).clamp(0, 1)


def logistic(x: Array, y: NDArray[np.uint8]) -> tuple[Array, float]:
    """Weight (d,) and bias of scikit-learn's logistic regression (L2, C = 1) on standardised features."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(x, y)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def l1_logistic(x: Array, y: NDArray[np.uint8], dims: int) -> Array:
    """Weight (d,) of the L1 logistic regression of the smallest penalty found that keeps at most ``dims`` weights."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import l1_min_c

    low = np.log(l1_min_c(x, y, loss="log"))  # below it all weights are zero
    high, best = low + np.log(1e4), np.zeros(x.shape[1], np.float32)
    for _ in range(20):
        middle = (low + high) / 2
        model = LogisticRegression(C=np.exp(middle), l1_ratio=1, solver="liblinear", random_state=0).fit(x, y)
        kept = np.count_nonzero(model.coef_)
        if kept <= dims:
            low, best = middle, model.coef_[0].astype(np.float32)
        else:
            high = middle
        if kept == dims:
            break
    return best


def average_precision(y: NDArray[np.uint8], score: Array) -> float:
    """Area under the precision-recall curve, as scikit-learn sums it, in [0, 1]."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(y, score))


def standardize(x: Array, mean: Array, std: Array) -> Array:
    """(x - mean) / std, (N, d); constant features become 0."""
    return np.where(std > 0, (x - mean) / np.where(std > 0, std, 1), 0).astype(np.float32)


# ------------------------------------------------------------------------------------------ attributes and files
def check_attributes(meta: dict[str, Any], data: Path) -> list[str]:
    """The attribute names of a prepared data set; a `UserError` where it has none."""
    if not meta.get("attributes"):
        raise UserError(
            f"{data}: {meta['dataset']} has no attributes to classify. Those with attributes: CelebA, Bedroom with a "
            "CSV of scene attributes, sprites."
        )
    return list(meta["attributes"])


def find(name: str, names: Sequence[str], where: Path) -> int:
    """Index of an attribute among ``names``, whatever the case, underscores for spaces or not; else a `UserError`."""
    plain = [n.lower().replace("_", " ") for n in names]
    if (wanted := name.lower().replace("_", " ")) not in plain:
        raise UserError(f"{where}: no attribute {name!r}. There are: {', '.join(names)}.")
    return plain.index(wanted)


def check_rows(rows: Sequence[Attribute], labels: dict[str, NDArray[np.uint8]], d: int, data: Path) -> None:
    """A `UserError` where a classifier cannot be fitted or scored."""
    for i, row in enumerate(rows):
        if not 1 <= row.dims <= d:
            raise UserError(f"probmask: {row.dims} dimensions for {row.name!r}, but z has {d}. Choose 1 to {d}.")
        for split, columns in labels.items():
            if columns[:, i].min() == columns[:, i].max():
                have = "all" if columns[0, i] else "none"
                raise UserError(f"{data}: {have} of the {split} images have {row.name!r}; a classifier needs both.")


def write(path: Path, classifier: Classifier, facts: dict[str, Any]) -> None:
    """Write a classifier, and what is known of it beside."""
    arrays = {"weight": classifier.weight, "mean": classifier.mean, "std": classifier.std}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    runtime.save_weights(path, {**tensors, "bias": torch.tensor([classifier.bias])})
    about = {"attribute": classifier.name, "masked": classifier.masked, "dims": classifier.dims}
    facts = {**about, **facts, "indices": np.flatnonzero(classifier.weight).tolist()}
    runtime.write_json(path.with_suffix(".json"), facts)


def read(path: Path) -> Classifier:
    """What `write` wrote."""
    t = runtime.load_weights(path)
    facts = runtime.read_json(path.with_suffix(".json"))
    weight, mean, std = (t[key].numpy() for key in ("weight", "mean", "std"))
    return Classifier(facts["attribute"], weight, float(t["bias"]), mean, std, facts["masked"])


def _rank(weight: Tensor) -> Tensor:
    """0 for the largest absolute value of each row, up towards 1."""
    return weight.abs().argsort(dim=1, descending=True).argsort(dim=1) / weight.shape[1]
