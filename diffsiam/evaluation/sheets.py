"""What the sheets of one encoder show of test images: their nearest neighbours, a map of them in two dimensions, and
which segment of z tells which attribute."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import heads, metrics, store
from diffsiam.params import Sheets
from diffsiam.training.methods import METHODS

Array = NDArray[np.float32]
_PENALTIES = np.geomspace(1e-3, 1e5, 9)  # of the ridge regressions, chosen by leave-one-out on train images
_DRAWS = 200  # of the test images, behind the interval of a difference
_ROUNDING = 1e-6  # points above chance that are none
_NEIGHBOURS = 5  # that the trustworthiness of a map is about, scikit-learn's own


def run(kind: str, data: Path, cfg: Sheets, out: Path, *, method: str, features: Path | None) -> None:
    """Write what one sheet shows of one encoder.

    Args:
        kind: neighbours, embedding (.npz) or segments (.json).
        data: folder of a prepared data set.
        features: of that data set by the encoder; None for `heads.PIXELS`, the images themselves.
        method: the encoder's, for the record.
    Raises:
        UserError: features that `store.read` refuses, or of a z without segments; too few test images; no labels of the
            kind that is needed.
    """
    if (features is None) != (method == heads.PIXELS):
        raise UserError("--features: give those of the encoder; without, --method pixels is the images themselves.")
    meta = runtime.read_json(data / "meta.json")
    if kind == "segments":
        found = None if features is None else store.read(features, data / "meta.json")
        if found is None or found.edges is None:
            cut = ", ".join(name for name, row in METHODS.items() if row.segment or row.coded)
            raise UserError(
                f"--features {features}: of no z with segments. Extract those of an encoder by one of {cut}."
            )
        result = segments(found.train, found.test, data, meta, found.edges, cfg.seed)
        return store.write_result(out, {"method": method, "dataset": meta["dataset"]} | result)
    images = runtime.read_array(data / "images_test.npy")
    x = heads.pixel_features(images) if features is None else store.read(features, data / "meta.json").test
    names, labels = told(data, meta)
    sheet = {"neighbours": neighbours, "embedding": embedding}[kind]
    facts = {"method": method, "dataset": meta["dataset"], "names": names, "classes": len(meta["classes"]) > 1}
    arrays = sheet(x, labels, images, cfg, meta["dataset"], "euclidean" if features is None else "cosine")
    with runtime.atomic(out) as temporary, open(temporary, "wb") as f:
        return np.savez_compressed(f, **facts, **arrays)  # type: ignore[arg-type]


def told(data: Path, meta: dict[str, Any]) -> tuple[list[str], NDArray[np.int64]]:
    """What is known of the test images: names of classes and labels (N, 1), or else of attributes and (N, L) of 0 and
    1; L = 0 where nothing is."""
    if len(meta["classes"]) > 1:
        return meta["classes"], np.asarray(runtime.read_array(data / "labels_test.npy"), np.int64)[:, None]
    names = list(meta.get("attributes", []))
    if not names:
        return [], np.zeros((meta["counts"]["test"], 0), np.int64)
    return names, np.asarray(runtime.read_array(data / "attributes_test.npy"), np.int64)


# -------------------------------------------------------------------------------------------------- neighbours
def neighbours(
    x: Array, labels: NDArray[np.int64], images: NDArray[np.uint8], cfg: Sheets, dataset: str, metric: str
) -> dict[str, Any]:
    """Queries, drawn alike for every encoder, with their nearest other test images; and, over all test images, in what
    share of its nearest an image finds its own labels.

    Args:
        x: features (N, d) of the test ``images`` (N, S, S, 3); ``labels`` (N, L).
        metric: cosine or euclidean.
    Returns:
        queries (Q,) and nearest (Q, K), rows of ``x``; images (Q, 1 + K, S, S, 3), the query first; same (Q, K), the
        share of labels that a neighbour has in common with its query; agreement and ci95, the mean share over all test
        images and half the width of its 95 % interval over them; chance, that of images paired at random; labels (Q,
        L). Shares are from 0 to 1, and NaN where there are no labels.
    """
    count = len(x)
    if count <= max(cfg.neighbours, cfg.queries):
        raise UserError(
            f"sheets.neighbours, sheets.queries: met {cfg.neighbours} and {cfg.queries}, but {dataset} has {count} "
            f"test images. Choose less than {count} for both."
        )
    index = NearestNeighbors(n_neighbors=cfg.neighbours, metric=metric, algorithm="brute").fit(x)
    nearest = index.kneighbors(return_distance=False)  # of no image itself
    queries = runtime.rng(cfg.seed, "sheets/queries", dataset).choice(count, cfg.queries, replace=False)
    shown = np.column_stack([queries, nearest[queries]])
    every = labels.shape[1] > 0
    same = (labels[nearest] == labels[:, None]).mean(axis=2) if every else np.full(nearest.shape, np.nan)
    shares = same.mean(axis=1)
    # Of two different images at random: n (n - 1) of N (N - 1) ordered pairs are both of a label that n images have.
    sizes = [np.unique(column, return_counts=True)[1] for column in labels.T]
    chances = [(n * (n - 1)).sum() / (count * (count - 1)) for n in sizes]
    return {
        "queries": queries,
        "nearest": nearest[queries],
        "images": images[shown],
        "same": same[queries],
        "labels": labels[queries],
        "agreement": shares.mean(),
        "ci95": metrics.Z95 * shares.std() / count**0.5,
        "chance": np.mean(chances) if chances else np.nan,
        "tests": count,
    }


# --------------------------------------------------------------------------------------------------- embedding
def embedding(
    x: Array, labels: NDArray[np.int64], images: NDArray[np.uint8], cfg: Sheets, dataset: str, metric: str
) -> dict[str, Any]:
    """t-SNE (van der Maaten & Hinton 2008) of test images, of which ``sheets.points`` are drawn, alike for every
    encoder; distances are those of ``metric``.

    Args:
        x, labels, images, metric: as of `neighbours`.
    Returns:
        xy (P, 2); rows (P,) of ``x``; shown (P, L), their labels; trustworthiness, 0 to 1: whether neighbours on the
        map are neighbours in ``x`` too.
    """
    count = min(cfg.points, len(x))
    if count <= 3 * cfg.perplexity:
        raise UserError(
            f"sheets.perplexity: met {cfg.perplexity:g} for {count} test images of {dataset}; t-SNE takes three times "
            f"as many neighbours of each. Choose less than {count / 3:g}, or raise sheets.points where there are more."
        )
    rows = np.sort(runtime.rng(cfg.seed, "sheets/points", dataset).choice(len(x), count, replace=False))
    # On the unit sphere Euclidean distances are in the order of cosines.
    points = normalize(x[rows]) if metric == "cosine" else x[rows]
    if not np.ptp(points, axis=0).any():
        raise UserError(
            f"sheets: the features of all {count} test images of {dataset} are equal: the encoder has collapsed, and "
            "there is no map of them. Take its method out of methods, or train it otherwise."
        )
    with threadpoolctl.threadpool_limits(1):  # sums in another order would move every point
        xy = TSNE(perplexity=cfg.perplexity, init="pca", random_state=cfg.seed, n_jobs=1).fit_transform(points)
    kept = trustworthiness(points, xy, n_neighbors=min(_NEIGHBOURS, (count - 1) // 2))
    return {"xy": xy, "rows": rows, "shown": labels[rows], "trustworthiness": kept, "perplexity": cfg.perplexity}


# ---------------------------------------------------------------------------------------------------- segments
def segments(
    train: Array, test: Array, data: Path, meta: dict[str, Any], edges: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """How well each segment of z alone tells each attribute: average precision on test images of a ridge regression on
    that segment, standardised, fitted on the train images. And whether attributes lie in different segments, `apart`.

    Args:
        train, test: features (N, d); ``data`` holds the attributes.
        edges: (n + 1,) of the segments of z.
    Returns:
        attributes; chance (L,), their shares of the test images; ap (n, L) and all (L,), of the segments and of all of
        z, in percent; centres (L,); low and high, names of the attributes that were compared; difference of their
        centres, and ci95, the two ends of its interval.
    """
    names, y, y_test = heads.labelled("attributes", meta, data)
    halves = np.array_split(runtime.rng(seed, "sheets/halves", meta["dataset"]).permutation(len(test)), 2)
    parts = [y, *(y_test[rows] for rows in halves)]
    known = [i for i in range(len(names)) if all(0 < part[:, i].mean() < 1 for part in parts)]
    if not known:
        raise UserError(
            f"{data}: none of {meta['dataset']}'s {len(names)} attributes is there, and absent, in the train images "
            "and in both halves of the test images. Bring other images, or take it out of heads.attributes_on."
        )
    y, y_test = y[:, known], y_test[:, known]
    cuts = [*itertools.pairwise(edges), (0, train.shape[1])]
    predicted = [_ridge(train[:, a:b], y, test[:, a:b]) for a, b in cuts]
    ap = np.concatenate([heads.average_precisions(y_test, p, np.ones((1, len(test)))) for p in predicted])
    chance = 100 * y_test.mean(axis=0)
    low, high, difference, ci95 = apart(y_test, predicted[:-1], halves, seed, meta["dataset"])
    return {
        "edges": edges.tolist(),
        "n_train": len(train),
        "n_test": len(test),
        "attributes": [names[i] for i in known],
        "chance": chance.tolist(),
        "ap": ap[:-1].tolist(),
        "all": ap[-1].tolist(),
        "centres": centres(ap[:-1], chance).tolist(),
        "low": names[known[low]],
        "high": names[known[high]],
        "difference": difference,
        "ci95": ci95,
    }


def apart(
    y: NDArray[Any], predicted: list[NDArray[np.float64]], halves: list[NDArray[np.intp]], seed: int, dataset: str
) -> tuple[int, int, float, list[float]]:
    """Whether attributes lie in different segments: those of lowest and of highest centre on one half of the images,
    and on the other half the difference of their centres, with the ends of its 95 % interval over draws of these.

    Args:
        y: labels (N, L); ``predicted`` by each of n segments, (N, L) each.
        halves: rows that choose, and rows that are measured.
    """

    def placed(rows: NDArray[np.intp], counts: NDArray[Any]) -> NDArray[np.float64]:
        """Centres (B, L)."""
        ap = np.stack([heads.average_precisions(y[rows], p[rows], counts) for p in predicted])
        return centres(ap, 100 * (counts @ y[rows]) / counts.sum(axis=1, keepdims=True))

    choosing, measured = halves
    found = placed(choosing, np.ones((1, len(choosing))))[0]
    low, high = int(found.argmin()), int(found.argmax())
    once = placed(measured, np.ones((1, len(measured))))[0]
    drawn = np.concatenate([placed(measured, counts) for counts in heads.drawn(len(measured), _DRAWS, seed, dataset)])
    ends = np.percentile(drawn[:, high] - drawn[:, low], [2.5, 97.5])
    return low, high, float(once[high] - once[low]), ends.tolist()


def centres(ap: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """An attribute's centre: the mean place of the segments, 0 for the first and 1 for the last, weighted by how far
    each tells it above chance; the middle where none does.

    Args:
        ap: average precisions in percent, (n, ..., L); ``chance`` (..., L).
    Returns:
        (..., L).
    """
    above = np.maximum(ap - chance - _ROUNDING, 0)
    places = np.linspace(0, 1, len(ap)) if len(ap) > 1 else np.full(1, 0.5)
    total = above.sum(axis=0)
    return np.divide(np.tensordot(places, above, 1), total, out=np.full(total.shape, 0.5), where=total > 0)


def _ridge(x: Array, y: NDArray[Any], unseen: Array) -> NDArray[np.float64]:
    """Predictions (M, L) for ``unseen``, fitted on x (N, d) and y (N, L), a penalty for each label; d may be 0."""
    if not x.shape[1]:
        return np.zeros((len(unseen), y.shape[1]))
    model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES, alpha_per_target=True))
    return (
        model.fit(x.astype(np.float64), y.astype(np.float64))
        .predict(unseen.astype(np.float64))
        .reshape(len(unseen), -1)
    )
