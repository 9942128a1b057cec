"""Disentanglement of codes whose true factors are known: every cell of a grid of factors has its code.

The protocols, and the order of their draws, are those of google-research/disentanglement_lib (Locatello et al. 2019):
each metric has a `RandomState` of its own, a draw is a combination of factors, each uniform and independent, and its
code is looked up. A code that holds several numbers is first turned into one, its first principal component, as DisDiff
(Yang et al. 2023) does. How to read the scores: docs/disentangle.md.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats
import sklearn.metrics
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from diffsiam import params, runtime
from diffsiam.data import sources
from diffsiam.data.grid import Grid
from diffsiam.errors import UserError
from diffsiam.evaluation import boosting, store
from diffsiam.evaluation.compiled import over_blocks

ACTIVE = 0.05  # least standard deviation of a code that counts
_BINS = 20  # of MIG
_SHUFFLES = 200
_BATCH = 16  # draws at a time, which only orders them
_BLOCK = 512  # votes at a time, for the memory's sake

Codes = NDArray[np.float32]  # (n, N)


class Principal(NamedTuple):
    """First principal components: ``codes`` (n, N), and the share of variance that each explains (N,), NaN for a
    constant."""

    codes: Codes
    explained: NDArray[np.float64]


class Importances(NamedTuple):
    """``matrix`` R (d, F): of each number for each factor, columns summing to 1, or to 0 where no tree splits.
    ``accuracy``: of the same trees on fresh draws, 0 to 1, mean over factors."""

    matrix: NDArray[np.float64]
    accuracy: float


# ------------------------------------------------------------------------------------------------------ codes
def principal(z: NDArray[np.floating], count: int) -> Principal:
    """One number for each of ``count`` equal pieces of ``z`` (n, d): its first principal component over all n, centred
    and not scaled."""
    found = [_components(piece, 1) for piece in np.split(z, count, axis=1)]
    return Principal(*(np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True)))


def whole(z: NDArray[np.floating], count: int) -> Principal:
    """The floor: the first ``count`` principal components of all of ``z``, a rotation that needs no method."""
    return _components(z, count)


def _components(x: NDArray[np.floating], count: int) -> Principal:
    x = x - x[0].astype(np.float64)  # a constant is then 0 exactly
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    largest, axes = values[::-1][:count], vectors[:, ::-1][:, :count]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(count)])  # the sign is free
    total = values.sum()
    explained = largest / total if total > 0 else np.full(count, np.nan)
    return Principal((x @ axes).astype(np.float32), explained)


# ------------------------------------------------------------------------------------------------------ draws
def sample(grid: Grid, count: int, state: RandomState) -> NDArray[np.int64]:
    """Combinations of factors (count, F), drawn factor by factor."""
    return np.stack([state.randint(size, size=count) for size in grid.sizes], axis=1)


def cells(grid: Grid, count: int, state: RandomState) -> NDArray[np.int64]:
    """Rows of the grid (count,), drawn `_BATCH` at a time."""
    sizes = (min(_BATCH, count - start) for start in range(0, count, _BATCH))
    return grid.index(np.concatenate([sample(grid, size, state) for size in sizes]))


def _drawn(grid: Grid, draws: params.Draws, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training and of the test draws, of which the former hold every value of every factor."""
    state = RandomState(seed)
    train, test = cells(grid, draws.train, state), cells(grid, draws.test, state)
    for name, size, values in zip(grid.names, grid.sizes, grid.factors(train).T, strict=True):
        if absent := size - len(np.unique(values)):
            raise UserError(
                f"disentanglement.draws.train: met {draws.train}, in which {absent} of the {size} values of the factor "
                f"{name} never come. Draw more: the published protocol takes 10000."
            )
    return train, test


# ---------------------------------------------------------------------------------------------------- metrics
def factor_vae(codes: Codes, grid: Grid, draws: params.Draws, seed: int) -> tuple[float, NDArray[np.int64]]:
    """FactorVAE score (Kim & Mnih 2018), 0 to 1, and the training votes (F, N): how often the code of least relative
    variance was j while factor k was held fixed. 0 where no code is active.

    A rotation of a perfect code scores high too: never print it alone.
    """
    state = RandomState(seed)
    variances = codes[grid.index(sample(grid, draws.variance, state))].astype(np.float64).var(axis=0, ddof=1)
    if not (np.sqrt(variances) >= ACTIVE).any():
        return 0.0, np.zeros((len(grid.sizes), codes.shape[1]), np.int64)
    train, test = (_votes(codes, grid, count, draws.batch, variances, state) for count in (draws.train, draws.test))
    right = test[train.argmax(axis=0), np.arange(codes.shape[1])]
    return float(right.sum() / test.sum()), train


def _votes(
    codes: Codes, grid: Grid, count: int, batch: int, variances: NDArray[np.float64], state: RandomState
) -> NDArray[np.int64]:
    fixed, factors = np.empty(count, np.int64), np.empty((count, batch, len(grid.sizes)), np.int64)
    for i in range(count):
        fixed[i] = k = int(state.randint(len(grid.sizes)))
        factors[i] = sample(grid, batch, state)
        factors[i, :, k] = factors[i, 0, k]
    rows, active = grid.index(factors), np.flatnonzero(np.sqrt(variances) >= ACTIVE)

    def closest(start: int, stop: int) -> NDArray[np.int64]:
        drawn = codes[rows[start:stop]][..., active].astype(np.float64)
        return active[np.argmin(drawn.var(axis=1, ddof=1) / variances[active], axis=1)]

    votes = np.zeros((len(grid.sizes), codes.shape[1]), np.int64)
    np.add.at(votes, (fixed, np.concatenate(over_blocks(closest, count, _BLOCK))), 1)
    return votes


def importances(x: NDArray[np.floating], grid: Grid, draws: params.Draws, seed: int, trees: str) -> Importances:
    """What gradient-boosted trees that tell each factor from ``x`` (n, d) make of its numbers (Eastwood & Williams
    2018), factors in parallel.

    Args:
        trees: "sklearn" for scikit-learn's own, "fast" for `boosting`.
    """
    train, test = _drawn(grid, draws, seed)
    inputs, unseen = x[train], x[test]

    def of(k: int, _: int) -> tuple[NDArray[np.float64], float]:
        labels, expected = grid.factors(train)[:, k], grid.factors(test)[:, k]
        if trees == "fast":
            weights, predicted = boosting.classify(inputs, labels, unseen, seed)
        else:
            model = GradientBoostingClassifier(random_state=seed).fit(inputs, labels)
            weights, predicted = model.feature_importances_, model.predict(unseen)
        return weights, float(np.mean(predicted == expected))

    columns, accuracies = zip(*over_blocks(of, len(grid.sizes), 1), strict=True)
    return Importances(np.stack(columns, axis=1), float(np.mean(accuracies)))


def disentanglement(matrix: NDArray[np.float64]) -> float | None:
    """What the papers' tables call DCI: 1 - the entropy over factors of each code's importances, in units of log F,
    weighted by the codes' shares. None where no code is of any importance, as of constants.

    Args:
        matrix: R (N, F).
    """
    if not matrix.sum():
        return None
    sharpness = 1 - scipy.stats.entropy(matrix + 1e-11, base=matrix.shape[1], axis=1)
    return float(sharpness @ matrix.sum(axis=1) / matrix.sum())


def blocks(matrix: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Importances (count, F) of ``count`` equal pieces of z: sums of those of its numbers, (d, F)."""
    return matrix.reshape(count, -1, matrix.shape[1]).sum(axis=1)


def shuffled(matrix: NDArray[np.float64], count: int, seed: int) -> float | None:
    """The floor of block DCI: its mean over `_SHUFFLES` random orders of the numbers of z, the same numbers in pieces
    that mean nothing."""
    state = RandomState(seed)
    found = [disentanglement(blocks(state.permutation(matrix), count)) for _ in range(_SHUFFLES)]
    return float(np.mean([value for value in found if value is not None])) if matrix.sum() else None


def completeness(matrix: NDArray[np.float64]) -> float | None:
    """The same over the codes of each factor, in units of log N."""
    return disentanglement(matrix.T)


def mig(codes: Codes, grid: Grid, draws: params.Draws, seed: int) -> float:
    """Mutual information gap (Chen et al. 2018), 0 to 1: the largest less the second largest information that a code in
    20 bins of equal width has of a factor, over the factor's entropy; mean over factors."""
    rows = cells(grid, draws.train, RandomState(seed))
    binned = [np.digitize(code, np.histogram(code, _BINS)[1][:-1]) for code in codes[rows].T]
    gaps = []
    for factor in grid.factors(rows).T:
        second, first = sorted(sklearn.metrics.mutual_info_score(factor, code) for code in binned)[-2:]
        gaps.append((first - second) / sklearn.metrics.mutual_info_score(factor, factor))
    return float(np.mean(gaps))


def beta_vae(codes: Codes, grid: Grid, draws: params.Draws, seed: int) -> float:
    """beta-VAE score (Higgins et al. 2017), 0 to 1: how well a logistic regression tells which factor two batches share
    from the codes' mean distances."""
    state = RandomState(seed)
    model = LogisticRegression(max_iter=1000).fit(*_distances(codes, grid, draws.train, draws.batch, state))
    return float(model.score(*_distances(codes, grid, draws.test, draws.batch, state)))


def _distances(
    codes: Codes, grid: Grid, count: int, batch: int, state: RandomState
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean absolute differences (count, N) of pairs that share a factor, and which (count,)."""
    shared, pairs = np.empty(count, np.int64), np.empty((count, 2, batch, len(grid.sizes)), np.int64)
    for i in range(count):
        shared[i] = k = int(state.randint(len(grid.sizes)))
        pairs[i] = sample(grid, batch, state), sample(grid, batch, state)
        pairs[i, 1, :, k] = pairs[i, 0, :, k]
    rows = grid.index(pairs)

    def distance(start: int, stop: int) -> NDArray[np.float64]:
        first, second = np.moveaxis(codes[rows[start:stop]].astype(np.float64), 1, 0)
        return np.abs(first - second).mean(axis=1)

    return np.concatenate(over_blocks(distance, count, _BLOCK)), shared


def sap(codes: Codes, grid: Grid, draws: params.Draws, seed: int) -> float:
    """Separated attribute predictability (Kumar et al. 2018), 0 to 1: the best less the second best accuracy of a
    linear support vector machine that tells a factor from a single code; mean over factors."""
    train, test = _drawn(grid, draws, seed)

    def gap(k: int, _: int) -> float:
        labels, expected = grid.factors(train)[:, k], grid.factors(test)[:, k]
        scores = []
        for code in codes.T[:, :, None]:
            model = LinearSVC(C=0.01, class_weight="balanced", random_state=seed).fit(code[train], labels)
            scores.append(model.score(code[test], expected))
        second, first = sorted(scores)[-2:]
        return float(first - second)

    return float(np.mean(over_blocks(gap, len(grid.sizes), 1)))


# ------------------------------------------------------------------------------------------------- the record
def run(
    features: Path,
    meta: Path,
    config: Path,
    cfg: params.Disentanglement,
    out: Path,
    *,
    count: int,
    method: str,
    seed: int,
) -> None:
    """Score stored features of a whole grid, and write scores, importances and votes as JSON.

    Args:
        features: those of `diffsiam.evaluation.features`, whose train images are the grid in its order.
        config: config.json of the encoder.
        count: into how many codes z is cut: the trained segments; of a method that has none (PDAE), as many.
    Raises:
        UserError: the data set has no grid, or the features are not of all of it; z cannot be cut; see `importances`.
    """
    data, record = store.read(features, meta), runtime.read_json(config)
    if "grid" not in data.meta:
        raise UserError(
            f"{meta}: {data.dataset} has no grid of known factors, by which disentanglement is measured. Choose one of "
            f"{', '.join(name for name, row in sources.DATASETS.items() if row.factors)}."
        )
    grid, z = Grid.of(data.meta), data.train
    if len(z) != grid.size:
        sizes = " x ".join(map(str, grid.sizes))
        raise runtime.damaged(
            features, f"holds {len(z)} images, the whole grid of {data.dataset} has {sizes} = {grid.size}"
        )
    cut = record.get("encoder") != "unet"  # the frozen diffusion model's z has no parts: it is read as the floor is
    if count < 2 or (z.shape[1] % count and cut) or z.shape[1] < count:
        dim = z.shape[1]
        allowed = f"a divisor of {dim}" if cut else f"2 to {dim}: of {method} they are principal components"
        raise UserError(
            f"representation.segments: met {count}, but codes are two or more equal pieces of z, and z has {dim} "
            f"numbers in {features}. Choose {allowed}."
        )
    floor = whole(z, count)
    codes = principal(z, count) if cut else floor
    scores, votes, matrix = _scores(codes.codes, grid, cfg)
    beneath, _, floor_matrix = _scores(floor.codes, grid, cfg)
    matrices = {"codes": matrix, "floor": floor_matrix}
    if "dci_block" in cfg.metrics:
        found = importances(z, grid, cfg.draws, cfg.seed, cfg.trees).matrix if cut else matrix
        matrices["block"] = blocks(found, count)
        scores["dci_block"], beneath["dci_block"] = disentanglement(matrices["block"]), shuffled(found, count, cfg.seed)
    if undefined := [name for name, value in scores.items() if value is None]:
        print(
            f"disentanglement of {method} on {data.dataset}: {', '.join(undefined)} cannot be told, null in {out}: the "
            "codes are constant, so that no tree splits.",
            file=sys.stderr,
        )
    std, floor_std = (part.codes.std(axis=0, dtype=np.float64) for part in (codes, floor))
    result = {
        "pretrain": data.dataset,
        "method": method,
        "seed": seed,
        "image_size": data.meta["image_size"],
        "latent": record.get("latent"),
        "images": grid.size,
        "factors": dict(zip(grid.names, grid.sizes, strict=True)),
        "codes": count,
        "dim": z.shape[1],
        "protocol": dataclasses.asdict(cfg.draws) | {"trees": cfg.trees, "seed": cfg.seed},
        "scores": scores | {f"{name}_floor": value for name, value in beneath.items()},
        "active": int((std >= ACTIVE).sum()),
        "active_floor": int((floor_std >= ACTIVE).sum()),
        "std": std.tolist(),
        "explained": [None if np.isnan(share) else share for share in codes.explained.tolist()],
        "votes": votes.tolist(),
        "importances": {name: values.tolist() for name, values in matrices.items()},
    }
    store.write_result(out, result)


def _scores(
    codes: Codes, grid: Grid, cfg: params.Disentanglement
) -> tuple[dict[str, float | None], NDArray[np.int64], NDArray[np.float64]]:
    """The scores that are asked for by name, FactorVAE's votes (F, N) and the importances (N, F)."""
    score, votes = factor_vae(codes, grid, cfg.draws, cfg.seed)
    found = importances(codes, grid, cfg.draws, cfg.seed, cfg.trees)
    scores: dict[str, float | None] = {
        "factorvae": score,
        "dci": disentanglement(found.matrix),
        "completeness": completeness(found.matrix),
        "informativeness": found.accuracy,
    }
    scores |= {name: MORE[name](codes, grid, cfg.draws, cfg.seed) for name in cfg.metrics if name in MORE}
    return scores, votes, found.matrix


MORE: dict[str, Callable[[Codes, Grid, params.Draws, int], float]] = {"mig": mig, "beta_vae": beta_vae, "sap": sap}
