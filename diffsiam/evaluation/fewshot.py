"""Few-shot accuracy by the thesis's protocol (Table 4.2), exactly and in seconds.

A linear layer is trained by SGD on the frozen features of a few support images and classifies query images,
in thousands of episodes. `fewshot_kernels.solve` gives the plain loop's predictions without a 512-dimensional
step.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsiam import params, runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import fewshot_kernels as kernels
from diffsiam.evaluation import metrics, store
from diffsiam.evaluation.compiled import over_blocks

BLOCK = 64  # episodes per task of a thread; results do not depend on it
# Mean norm that `normalize: norm` scales features to. On digits, 1-shot accuracy is flat from 10 to 30 for pixels and
# from 20 to 60 for an untrained ResNet-18; it falls by a quarter at 2 and at 100.
NORM = 20.0


@dataclasses.dataclass(frozen=True)
class Episodes:
    """The drawn images of all episodes.

    Attributes:
        classes: (E, ways) labels.
        support: (E, ways, largest shots) image indices; fewer shots are the first of them.
        query: (E, ways, queries) image indices, none of them in ``support``.
        usable: number of classes with enough images to take part.
    """

    classes: NDArray[np.int64]
    support: NDArray[np.int64]
    query: NDArray[np.int64]
    usable: int


def episodes(labels: NDArray[np.int64], cfg: params.FewShot, dataset: str) -> Episodes:
    """Draw classes, queries and support images of every episode.

    Args:
        labels: (N,) of the images to draw from.
        dataset: names the draw, so that every method meets the same episodes.
    Raises:
        UserError: fewer than ``cfg.ways`` classes have ``max(cfg.shots) + cfg.queries`` images.
    """
    per_class = max(cfg.shots) + cfg.queries
    counts = np.bincount(labels)
    usable = np.flatnonzero(counts >= per_class)
    if len(usable) < cfg.ways:
        raise UserError(_too_few(counts, len(usable), cfg, dataset))
    members = np.concatenate([np.flatnonzero(labels == c) for c in usable])
    starts = np.concatenate([[0], np.cumsum(counts[usable])])
    classes = np.empty((cfg.episodes, cfg.ways), np.int64)
    images = np.empty((cfg.episodes, cfg.ways, per_class), np.int64)
    kernels.draw_episodes(_keys(cfg, "few-shot images", dataset), members, starts, classes, images)
    return Episodes(
        classes=usable[classes],
        support=np.ascontiguousarray(images[:, :, cfg.queries :]),
        query=np.ascontiguousarray(images[:, :, : cfg.queries]),
        usable=len(usable),
    )


def initial_weights(cfg: params.FewShot, dataset: str, episode: int, dim: int) -> NDArray[np.float64]:
    """W0 with the bias as last column, (ways, dim + 1), of one episode: the same for all shots."""
    weights, bias = np.empty((cfg.ways, dim)), np.empty(cfg.ways)
    kernels.draw_weights(_keys(cfg, "few-shot weights", dataset)[episode], weights, bias)
    return np.hstack([weights, bias[:, None]])


def batch_order(cfg: params.FewShot, dataset: str, shots: int, episode: int) -> NDArray[np.int64]:
    """Order (epochs, ways * shots) in which one episode's support images, class by class, are visited."""
    key = _order_keys(cfg, dataset, shots)[episode]
    order = np.empty((cfg.epochs, cfg.ways * shots), np.uint64)
    for epoch in range(cfg.epochs):
        kernels.draw_order(key, epoch, order[epoch])
    return order.astype(np.int64)


def predict(
    features: NDArray[np.float32], drawn: Episodes, cfg: params.FewShot, dataset: str
) -> dict[int, NDArray[np.int64]]:
    """Predictions of every query, for each number of shots.

    Args:
        features: (N, d); ``drawn`` holds rows of it.
    Returns:
        shots -> (E, ways, queries): numbers 0..ways-1 of the class within the episode.
    """
    shots = np.asarray(cfg.shots)
    responses = [_responses(cfg, n) for n in cfg.shots]
    impulses = np.zeros((len(shots), max(len(impulse) for impulse, _ in responses)))
    for row, (impulse, _) in zip(impulses, responses, strict=True):
        row[: len(impulse)] = impulse
    decays = np.array([decay for _, decay in responses])
    weight_keys = _keys(cfg, "few-shot weights", dataset)
    order_keys = np.stack([_order_keys(cfg, dataset, n) for n in cfg.shots])
    sgd = (cfg.epochs, cfg.batch_size, cfg.learning_rate, cfg.momentum, _dampening(cfg), cfg.weight_decay)
    norms = np.sqrt(np.einsum("nd,nd->n", features, features))
    total, ways, queries = drawn.query.shape
    query = drawn.query.reshape(total, ways * queries)
    predictions = np.empty((len(shots), total, ways * queries), np.int64)

    def solve(start: int, stop: int) -> None:
        kernels.solve(
            features, norms, drawn.support[start:stop], query[start:stop], tuple(range(ways)), shots,
            weight_keys[start:stop], order_keys[:, start:stop], impulses, decays, sgd, predictions[:, start:stop],
        )  # fmt: skip

    over_blocks(solve, total, BLOCK)
    return {n: p.reshape(total, ways, queries) for n, p in zip(cfg.shots, predictions, strict=True)}


def run(features: Path, meta: Path, cfg: params.FewShot, out: Path, *, method: str, seed: int) -> None:
    """Evaluate stored features and write the result of `evaluate` as JSON.

    Raises:
        UserError: see `store.read` and `episodes`.
    """
    store.write_result(out, evaluate(store.read(features, meta), cfg, method=method, seed=seed))


def evaluate(data: store.FeatureSet, cfg: params.FewShot, *, method: str, seed: int) -> dict[str, Any]:
    """Accuracies on the test features, with the train features' mean norm and the factor that all were scaled by.

    The accuracy depends on the features' scale, because the protocol's learning rate is fixed; with ``cfg.normalize:
    norm`` one factor for all images brings the mean norm of the train features to `NORM`.

    For each number of shots: mean accuracy over episodes in percent, its standard deviation over episodes
    (the population's), the 95 % half-width of the mean, and the queries answered rightly in each episode. All
    methods meet the same episodes, so paired differences between methods can be taken from the last.

    Args:
        method: of the encoder, for the record.
        seed: see ``method``.
    Raises:
        UserError: see `episodes`.
    """
    drawn = episodes(data.test_labels, cfg, data.dataset)
    truth = np.arange(cfg.ways)[:, None]
    norm = float(np.linalg.norm(data.train, axis=1).mean())
    scale = np.float32(NORM / norm if cfg.normalize == "norm" and norm else 1)
    predictions = predict(data.test * scale, drawn, cfg, data.dataset)
    return {
        "method": method,
        "dataset": data.dataset,
        "seed": seed,
        "ways": cfg.ways,
        "queries": cfg.queries,
        "episodes": cfg.episodes,
        "usable_classes": drawn.usable,
        "mean_norm": norm,
        "scale": float(scale),
        "shots": {
            str(n): metrics.episode_summary((p == truth).sum(axis=(1, 2)), cfg.ways * cfg.queries)
            for n, p in predictions.items()
        },
    }


def _keys(cfg: params.FewShot, purpose: str, item: str) -> NDArray[np.uint64]:
    """One 64-bit key per episode: a prefix of the keys of a run with more episodes."""
    return runtime.rng(cfg.seed, purpose, item).integers(2**64, size=cfg.episodes, dtype=np.uint64)


def _order_keys(cfg: params.FewShot, dataset: str, shots: int) -> NDArray[np.uint64]:
    return _keys(cfg, "few-shot order", f"{dataset}/{shots}")


def _dampening(cfg: params.FewShot) -> float:
    """torch.optim.SGD ignores dampening without momentum."""
    return cfg.dampening if cfg.momentum else 0.0


def _responses(cfg: params.FewShot, shots: int) -> tuple[NDArray[np.float64], float]:
    """What is left in the weights at the end of training of a unit added to the momentum buffer at each step
    (steps,), and of a unit of W0."""
    steps = cfg.epochs * -(-cfg.ways * shots // cfg.batch_size)
    gain = 1 - _dampening(cfg)

    def follow(weight: float, velocity: float, count: int) -> NDArray[np.float64]:
        path = np.empty(count + 1)
        path[0] = weight
        for i in range(count):
            velocity = cfg.momentum * velocity + gain * cfg.weight_decay * weight
            weight -= cfg.learning_rate * velocity
            path[i + 1] = weight
        return path

    impulse = follow(-cfg.learning_rate, 1.0, steps - 1)[::-1].copy()
    # The first momentum buffer is the raw gradient: no dampening.
    decay = follow(1 - cfg.learning_rate * cfg.weight_decay, cfg.weight_decay, steps - 1)[-1]
    return impulse, float(decay)


def _too_few(counts: NDArray[np.int64], usable: int, cfg: params.FewShot, dataset: str) -> str:
    most = np.sort(counts)[::-1]
    largest = int(most[cfg.ways - 1]) - cfg.queries if len(most) >= cfg.ways else 0
    remedy = (
        f"set fewshot.shots to at most {largest}"
        if largest > 0
        else f"lower fewshot.queries (now {cfg.queries}) or fewshot.ways"
    )
    return (
        f"few-shot on {dataset}: {cfg.ways} classes with {max(cfg.shots)} support and {cfg.queries} query "
        f"test images each are needed, {usable} of {np.count_nonzero(counts)} classes have that many. The largest "
        f"number of shots that works is {max(largest, 0)}: {remedy}, or leave {dataset} out, of transfer or of --data."
    )
