"""What a frozen encoder knows of attributes: the two evaluations of DiTi (yue-zhongqi/diti, eval/), by one linear layer
for all labels of a data set at once, on features that are not standardised.

attributes: binary labels, binary cross-entropy; mean average precision in percent (eval/multitask_classification.py).
regression: continuous labels, squared error; Pearson's r and mean squared error (eval/attribute_regression.py).

Each metric is the mean over the labels. Intervals come from draws of the test images with replacement; the draws depend
on seed, data set and number of images alone, so those of two results pair (`diffsiam.report.attributes`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffsiam import runtime
from diffsiam.data import sources
from diffsiam.errors import UserError
from diffsiam.evaluation import store
from diffsiam.params import Heads

Array = NDArray[np.float32]
Metric = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float64]]
PIXELS = "pixels"  # in place of a method: the images themselves
_PIXEL_SIDE = 16  # to which they are averaged where they are larger
_BLOCK = 2**22  # numbers of an array of draws at a time


# ----------------------------------------------------------------------------------------------------- metrics
def average_precisions(y: NDArray[Any], prediction: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.float64]:
    """Area under each label's precision-recall curve, as scikit-learn sums it, in percent.

    Args:
        y: labels in {0, 1}, (N, L).
        prediction: (N, L), higher where the label is more likely.
        counts: how often each draw holds each image, (B, N).
    Returns:
        (B, L); NaN where a draw holds no image with the label.
    """
    out = np.empty((len(counts), y.shape[1]))
    for label in range(y.shape[1]):
        order = np.argsort(-prediction[:, label], kind="stable")
        ranked = prediction[order, label]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores share a threshold
        drawn = counts[:, order]
        found = np.cumsum(drawn * y[order, label].astype(drawn.dtype), axis=1)[:, ends]
        gained = np.diff(found, axis=1, prepend=0)
        precision = found / np.maximum(np.cumsum(drawn, axis=1)[:, ends], 1)
        with np.errstate(invalid="ignore"):
            out[:, label] = 100 * (gained * precision).sum(axis=1) / found[:, -1]
    return out


def correlations(y: NDArray[Any], prediction: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson's r of each label, (B, L), of arguments as in `average_precisions`; 0 where labels or predictions are
    constant."""
    total = counts.sum(axis=1, keepdims=True)
    # Moments about a value of their own: about a far zero they would cancel, and of what is constant all are 0.
    y, p = (np.asarray(values, np.float64) - values[0] for values in (y, prediction))
    mean_y, mean_p = counts @ y / total, counts @ p / total
    covariance = counts @ (y * p) / total - mean_y * mean_p
    square = (counts @ y**2 / total - mean_y**2) * (counts @ p**2 / total - mean_p**2)
    return np.divide(covariance, np.sqrt(np.maximum(square, 0)), out=np.zeros_like(covariance), where=square > 0)


def squared_errors(y: NDArray[Any], prediction: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.float64]:
    """Mean squared error of each label, (B, L), of arguments as in `average_precisions`."""
    errors = (np.asarray(y, np.float64) - prediction) ** 2
    return counts @ errors / counts.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One of the two evaluations.

    Attributes:
        labels: the arrays' name in a prepared data set.
        metrics: by name; the first, of which more is better, chooses the epoch.
        loss: of predictions and labels, both (B, L), a mean over both.
        batch_size, choice, flip: its own parameters.
    """

    labels: str
    metrics: Mapping[str, Metric]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch_size: Callable[[Heads], int]
    choice: Callable[[Heads], str]
    flip: Callable[[Heads], float]


PROTOCOLS = {
    "attributes": Protocol(
        "attributes",
        {"ap": average_precisions},
        functional.binary_cross_entropy_with_logits,
        lambda cfg: cfg.batch_size.attributes,
        lambda cfg: cfg.choice.attributes,
        lambda cfg: cfg.flip,
    ),
    "regression": Protocol(
        "targets",
        {"r": correlations, "mse": squared_errors},
        functional.mse_loss,
        lambda cfg: cfg.batch_size.regression,
        lambda cfg: cfg.choice.regression,
        lambda cfg: 0.0,
    ),
}


# ------------------------------------------------------------------------------------------------------- heads
def run(
    protocol: str, data: Path, cfg: Heads, out: Path, *, features: Path | None, method: str, seed: int | None
) -> None:
    """Train the heads of one encoder on one data set and write the result as JSON: each metric with its interval, its
    value for each label and its draws; the epoch that was taken, the curve over epochs, and the same metrics of
    predicting every label's mean (``floor``).

    Args:
        protocol: a row of `PROTOCOLS`.
        data: folder of a prepared data set with labels of that kind.
        features: of the encoder; None for the floor that the pixels themselves are, `PIXELS`.
        method: the encoder's, for the record.
        seed: see ``method``.
    Raises:
        UserError: the data set has no such labels, or as good as none; features that `store.read` refuses, or without
            those of the mirror images where they are needed; a training that diverges.
    """
    if (features is None) != (method == PIXELS):
        raise UserError("--features: give those of the encoder; without, --method pixels is the floor of the images.")
    torch.set_num_threads(1)  # a batch is too small to share
    row = PROTOCOLS[protocol]
    meta = runtime.read_json(data / "meta.json")
    names, y, y_test = labelled(row.labels, meta, data)
    if features is None:
        images, images_test = (runtime.read_array(data / f"images_{part}.npy") for part in ("train", "test"))
        x, x_test = pixel_features(images), pixel_features(images_test)
        mirrored = pixel_features(images[:, :, ::-1]) if sources.get(meta["dataset"]).mirror else None
    else:
        found = store.read(features, data / "meta.json")
        x, mirrored, x_test = found.train, found.train_mirrored, found.test
        if mirrored is None and row.flip(cfg) and sources.get(found.dataset).mirror:
            raise UserError(
                f"{features}: has no features of the mirror images that {protocol} on {found.dataset} trains on. "
                "Extract it with `diffsiam features --mirror`, or set heads.flip to 0."
            )
    choice, validation = row.choice(cfg), np.asarray(meta["splits"]["val"], np.int64)
    rows = np.setdiff1d(np.arange(len(x)), validation) if choice == "val" else np.arange(len(x))
    judged = {"val": (x[validation], y[validation]), "last": None, "best_test": (x_test, y_test)}[choice]
    trained = (x[rows], None if mirrored is None else mirrored[rows], y[rows])
    epoch, curve, head = choose(*trained, judged, row, cfg, f"{protocol} of {method} on {meta['dataset']}")
    mean = np.broadcast_to(y[rows].mean(axis=0, dtype=np.float64), y_test.shape)
    result: dict[str, Any] = {
        "method": method,
        "dataset": meta["dataset"],
        "seed": seed,
        "protocol": protocol,
        "choice": choice,
        "epoch": epoch,
        "epochs": cfg.epochs,
        "n_train": len(rows),
        "n_test": len(x_test),
        "labels": names,
        "metrics": scored(y_test, predict(head, x_test), row, cfg, meta["dataset"]),
        "floor": {name: _mean(_once(metric, y_test, mean)) for name, metric in row.metrics.items()},
        "curve": curve,
    }
    store.write_result(out, result)


def choose(
    x: Array,
    mirrored: Array | None,
    y: NDArray[Any],
    judged: tuple[Array, NDArray[Any]] | None,
    protocol: Protocol,
    cfg: Heads,
    what: str,
) -> tuple[int, list[dict[str, Any]], nn.Linear]:
    """The epoch, from 1, that does best on the images ``judged``, or the last where there are none; the loss and, where
    an epoch was judged, the score of each; the head of that epoch."""
    metric = next(iter(protocol.metrics.values()))
    curve: list[dict[str, Any]] = []
    best, taken, kept = -np.inf, 0, {}
    for epoch, (head, loss) in enumerate(epochs(x, mirrored, y, protocol, cfg), start=1):
        if not np.isfinite(loss):
            raise UserError(
                f"{what}: the loss is {loss} after epoch {epoch}: it diverges at heads.learning_rate = "
                f"{cfg.learning_rate:g} on features of mean norm {np.linalg.norm(x, axis=1).mean():.3g}. Lower it."
            )
        score = None if judged is None else _mean(_once(metric, judged[1], predict(head, judged[0])))
        if score is not None and np.isnan(score):
            raise UserError(
                f"{what}: of the images that choose the epoch none has any of the attributes. Choose the last epoch "
                "(heads.choice), or raise data.val_fraction."
            )
        curve.append({"epoch": epoch, "loss": loss, "score": score})
        if score is None or score > best:
            best, taken = score if score is not None else best, epoch
            kept = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(kept)
    return taken, curve, head


def epochs(
    x: Array, mirrored: Array | None, y: NDArray[Any], protocol: Protocol, cfg: Heads
) -> Iterator[tuple[nn.Linear, float]]:
    """Train one linear layer by Adam at a constant rate; yields it, with the mean loss, after each epoch.

    Args:
        x: features (N, d); ``mirrored``, those of the mirror images, take their place with probability ``heads.flip``,
            drawn anew for each image and epoch.
        y: labels (N, L).
    """
    features, labels = torch.from_numpy(x), torch.from_numpy(np.asarray(y, np.float32))
    flipped_features = None if mirrored is None else torch.from_numpy(mirrored)
    head = nn.Linear(x.shape[1], y.shape[1])
    start = runtime.generator(cfg.seed, "heads/weights")
    for parameter in head.parameters():  # PyTorch's own bounds, with a generator
        nn.init.uniform_(parameter, -(x.shape[1] ** -0.5), x.shape[1] ** -0.5, generator=start)
    optimizer = torch.optim.Adam(head.parameters(), lr=cfg.learning_rate)
    for epoch in range(cfg.epochs):
        order, total = torch.arange(len(x)), 0.0
        if cfg.shuffle:
            order = torch.randperm(len(x), generator=runtime.generator(cfg.seed, "heads/order", epoch))
        flip = torch.rand(len(x), generator=runtime.generator(cfg.seed, "heads/flip", epoch)) < protocol.flip(cfg)
        for rows in order.split(protocol.batch_size(cfg)):
            batch = features[rows]
            if flipped_features is not None:
                batch = torch.where(flip[rows, None], flipped_features[rows], batch)
            loss = protocol.loss(head(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        yield head, total / len(x)


@torch.no_grad()
def predict(head: nn.Linear, x: Array) -> Array:
    """Predictions (N, L) for features (N, d)."""
    return head(torch.from_numpy(x)).numpy()


# ------------------------------------------------------------------------------------------------------ scores
def scored(
    y: NDArray[Any], prediction: Array, protocol: Protocol, cfg: Heads, dataset: str
) -> dict[str, dict[str, Any]]:
    """By metric: its value, half the width of the 95 % interval (percentiles), its value for each label (None where it
    is not defined, and left out of the mean), and its value in each draw."""
    found: dict[str, dict[str, Any]] = {}
    draws: dict[str, list[float]] = {name: [] for name in protocol.metrics}
    for counts in drawn(len(y), cfg.bootstrap, cfg.seed, dataset):
        for name, metric in protocol.metrics.items():
            draws[name] += [_mean(by_label) for by_label in metric(y, prediction, counts)]
    for name, metric in protocol.metrics.items():
        by_label = _once(metric, y, prediction)
        low, high = np.nanpercentile(draws[name], [2.5, 97.5])
        found[name] = {
            "value": _mean(by_label),
            "ci95": float(high - low) / 2,
            "by_label": [None if np.isnan(value) else float(value) for value in by_label],
            "draws": [None if np.isnan(value) else round(value, 6) for value in draws[name]],
        }
    return found


def drawn(images: int, draws: int, seed: int, dataset: str) -> Iterator[Array]:
    """How often each of ``draws`` draws with replacement holds each image, a block (B, images) of draws at a time."""
    rng = runtime.rng(seed, "heads/bootstrap", dataset)
    block = max(1, _BLOCK // images)
    for begin in range(0, draws, block):
        held = [
            np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(min(block, draws - begin))
        ]
        yield np.array(held, np.float32)


def _mean(by_label: NDArray[np.float64]) -> float:
    """Over the labels for which the metric is defined; NaN where it is for none."""
    return float(by_label[~np.isnan(by_label)].mean()) if not np.isnan(by_label).all() else float("nan")


def _once(metric: Metric, y: NDArray[Any], prediction: NDArray[Any]) -> NDArray[np.float64]:
    """The metric of each label, (L,), on the images as they are."""
    return metric(y, prediction, np.ones((1, len(y))))[0]


# -------------------------------------------------------------------------------------------- labels and pixels
def labelled(kind: str, meta: dict[str, Any], data: Path) -> tuple[list[str], NDArray[Any], NDArray[Any]]:
    """Names, train labels and test labels, (N, L) each.

    Args:
        kind: ``attributes`` or ``targets``, continuous labels.
        meta: meta.json of the folder ``data``.
    Raises:
        UserError: the data set has none; arrays of another shape, or that are not finite.
    """
    names = list(meta.get(kind, []))  # absent from data sets prepared before there were any
    if not names:
        what = {"attributes": "attributes", "targets": "continuous labels"}[kind]
        raise UserError(f"{data}: {meta['dataset']} has no {what}. Choose a data set with {what} (docs/attributes.md).")
    train, test = (np.asarray(runtime.read_array(data / f"{kind}_{part}.npy")) for part in ("train", "test"))
    for part, values in (("train", train), ("test", test)):
        if values.shape != (meta["counts"][part], len(names)) or not np.isfinite(values).all():
            raise runtime.damaged(
                data / f"{kind}_{part}.npy",
                f"shape {values.shape}; needed are ({meta['counts'][part]}, {len(names)}) finite numbers",
            )
    absent = [names[i] for i in np.flatnonzero(~test.any(axis=0))] if kind == "attributes" else []
    if len(absent) == len(names):
        raise UserError(f"{data}: no test image has any of the attributes. Bring other test images.")
    if absent:
        print(f"{data}: no test image has {', '.join(absent)}; left out of the mean.", file=sys.stderr)
    return names, train, test


def pixel_features(images: NDArray[np.uint8]) -> Array:
    """The images (N, S, S, 3) as features (N, d) in [-1, 1], averaged to `_PIXEL_SIDE` where they are larger."""
    count, side = images.shape[:2]
    small = min(side, _PIXEL_SIDE)
    blocks = np.empty((count, small, small, 3), np.float32)
    for begin in range(0, count, 1024):
        part = images[begin : begin + 1024]
        blocks[begin : begin + 1024] = part.reshape(len(part), small, side // small, small, side // small, 3).mean(
            (2, 4)
        )
    blocks /= 127.5
    blocks -= 1
    return blocks.reshape(count, -1)
