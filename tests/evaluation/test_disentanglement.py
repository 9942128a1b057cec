"""Metrics of disentanglement on codes whose scores are known, and against the protocols written out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from diffsiam import params
from diffsiam.data import sources
from diffsiam.data.grid import Grid
from diffsiam.errors import UserError
from diffsiam.evaluation import boosting, store
from diffsiam.evaluation import disentanglement as d

ROOMS = Grid(*zip(*sources.DATASETS["rooms"].factors, strict=True))
SMALL = Grid(("colour", "side"), (3, 4))
DRAWS = params.Draws(variance=10_000, train=2_000, test=1_000, batch=64)
FEW = params.Draws(variance=200, train=150, test=80, batch=8)


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


IDEAL = standardised(ROOMS.factors(np.arange(ROOMS.size)))
NOISE = np.random.default_rng(0).normal(size=(ROOMS.size, 6))
ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]


def planted(name: str) -> np.ndarray:
    cells = ROOMS.factors(np.arange(ROOMS.size))
    match name:
        case "ideal":
            codes = IDEAL
        case "constants beside":
            codes = np.concatenate([IDEAL, np.full((ROOMS.size, 4), 3.0)], axis=1)
        case "noise beside":
            codes = np.concatenate([IDEAL, NOISE[:, :4]], axis=1)
        case "values permuted":
            rng = np.random.default_rng(3)
            columns = [rng.permutation(size)[cells[:, k]] for k, size in enumerate(ROOMS.sizes)]
            codes = standardised(np.stack(columns, axis=1))
        case "monotone":
            codes = IDEAL + 0.2 * IDEAL**3
        case "duplicated":
            codes = np.concatenate([IDEAL, IDEAL], axis=1)
        case "rotated":
            codes = IDEAL @ ROTATION
        case "noise":
            codes = NOISE
    return codes.astype(np.float32)


def close(measured: float | None, expected: float, by: float) -> bool:
    return measured is not None and abs(measured - expected) <= by


@pytest.mark.parametrize(
    ("name", "factorvae", "dci", "completeness", "mig"),
    [
        ("ideal", 1, 1, 1, 0.999),
        ("constants beside", 1, 1, 1, 0.999),
        ("noise beside", 1, 1, 1, 0.996),
        ("values permuted", 1, 1, 1, 0.999),
        ("monotone", 1, 1, 1, 0.999),
        ("duplicated", 1, 1, 1 - math.log(2) / math.log(12), 0),
        ("noise", 1 / 6, 0.002, 0.002, 0),
    ],
)
def test_known_codes_of_rooms_score_what_they_must(
    name: str, factorvae: float, dci: float, completeness: float, mig: float
) -> None:
    codes = planted(name)
    score, _ = d.factor_vae(codes, ROOMS, DRAWS, 0)
    assert close(score, factorvae, 0.01 if name != "noise" else 0.02), score
    found = d.importances(codes, ROOMS, DRAWS, 0, "fast").matrix
    assert close(d.disentanglement(found), dci, 0.02)
    assert close(d.completeness(found), completeness, 0.02)
    # All of a bin are of one value where bins are as many or more; the entropies are of the draws.
    assert close(d.mig(codes, ROOMS, dataclasses.replace(DRAWS, train=10_000), 0), mig, 0.01)


def test_a_rotation_is_punished_by_dci_and_mig_and_little_by_factorvae() -> None:
    codes = planted("rotated")
    assert d.factor_vae(codes, ROOMS, DRAWS, 0)[0] > 0.55
    dci = d.disentanglement(d.importances(codes, ROOMS, DRAWS, 0, "fast").matrix)
    assert dci is not None
    assert dci < 0.45
    assert d.mig(codes, ROOMS, DRAWS, 0) < 0.3


def test_hues_as_circles_are_perfect_as_blocks_and_a_little_less_by_their_first_component() -> None:
    """Two numbers per hue: no single one orders a circle."""
    cells = ROOMS.factors(np.arange(ROOMS.size))
    angles = 2 * np.pi * cells[:, :3] / 6
    hues = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(-1, 6)
    rest = np.stack([IDEAL[:, 3:], np.zeros((ROOMS.size, 3))], axis=2).reshape(-1, 6)
    z = np.concatenate([hues, rest], axis=1).astype(np.float32)
    few = dataclasses.replace(DRAWS, train=1_000, test=100)
    whole = d.importances(z, ROOMS, few, 0, "fast").matrix.reshape(6, 2, 6).sum(axis=1)
    first = d.disentanglement(d.importances(d.principal(z, 6).codes, ROOMS, few, 0, "fast").matrix)
    assert close(d.disentanglement(whole), 1, 0.001)
    assert first is not None
    assert 0.85 < first < 0.995


def test_constants_have_no_score_that_could_be_mistaken() -> None:
    codes = np.full((SMALL.size, 2), 5, np.float32)
    found = d.importances(codes, SMALL, FEW, 0, "fast").matrix
    assert (d.disentanglement(found), d.completeness(found)) == (None, None)
    assert (d.factor_vae(codes, SMALL, FEW, 0)[0], d.mig(codes, SMALL, FEW, 0)) == (0, 0)


def test_another_seed_of_the_metrics_changes_little() -> None:
    codes = planted("rotated")
    scores = [d.factor_vae(codes, ROOMS, dataclasses.replace(DRAWS, train=5_000, test=5_000), s)[0] for s in (0, 1)]
    assert abs(scores[0] - scores[1]) < 0.02
    scores = [d.mig(codes, ROOMS, dataclasses.replace(DRAWS, train=10_000), seed) for seed in (0, 1)]
    assert abs(scores[0] - scores[1]) < 0.02


# ----------------------------------------------------------------------------------- the protocols, written out
def draw(count: int, state: np.random.RandomState) -> np.ndarray:
    """disentanglement_lib's: all of one factor, then all of the next."""
    out = np.zeros((count, len(SMALL.sizes)), np.int64)
    for k, size in enumerate(SMALL.sizes):
        out[:, k] = state.randint(size, size=count)
    return out


def look_up(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    return np.array([codes[4 * colour + side] for colour, side in factors], np.float64)


def batches(codes: np.ndarray, count: int, state: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    parts = [draw(min(16, count - start), state) for start in range(0, count, 16)]
    factors = np.concatenate(parts)
    return look_up(codes, factors), factors


@pytest.fixture
def codes() -> np.ndarray:
    """One code of the colour, one of both, one that is idle, one of noise."""
    colour, side = SMALL.factors(np.arange(SMALL.size)).T
    columns = [colour, side + 0.4 * colour, 1e-3 * side, 0.1 * np.random.default_rng(1).normal(size=12)]
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.fixture
def entangled(codes: np.ndarray) -> np.ndarray:
    """Of which no score is perfect: the idle code beside three that are drawn."""
    drawn = np.random.default_rng(4).normal(size=codes.shape).astype(np.float32)
    return np.where(np.arange(4) == 2, codes, drawn)


@pytest.mark.parametrize(("kind", "seed"), [("codes", 3), ("entangled", 3), ("entangled", 40)])
def test_votes_are_those_of_a_plain_loop_over_the_same_draws(
    kind: str, seed: int, request: pytest.FixtureRequest
) -> None:
    """At seed 40 a code is more often voted for one factor in training, and for the other in the test."""
    codes, state = request.getfixturevalue(kind), np.random.RandomState(seed)
    variances = look_up(codes, draw(FEW.variance, state)).var(axis=0, ddof=1)
    active = [j for j in range(4) if math.sqrt(variances[j]) >= 0.05]
    assert active == [0, 1, 3]
    tables = []
    for count in (FEW.train, FEW.test):
        votes = np.zeros((2, 4), np.int64)
        for _ in range(count):
            k = state.randint(2)
            factors = draw(FEW.batch, state)
            factors[:, k] = factors[0, k]
            relative = look_up(codes, factors).var(axis=0, ddof=1) / variances
            votes[k, min(active, key=lambda j: relative[j])] += 1
        tables.append(votes)
    right = sum(tables[1][tables[0][:, j].argmax(), j] for j in range(4))
    assert (tables[0].argmax(axis=0) == tables[1].argmax(axis=0)).all() == (seed != 40)
    score, votes = d.factor_vae(codes, SMALL, FEW, seed)
    np.testing.assert_array_equal(votes, tables[0])
    assert score == right / FEW.test


def test_a_code_is_active_by_its_standard_deviation(codes: np.ndarray) -> None:
    """0.06 and more of all three, variances below .005."""
    small = codes[:, [0, 1, 3]] * np.float32([0.08, 0.08, 1])
    assert d.factor_vae(small, SMALL, FEW, 3)[0] == d.factor_vae(codes[:, [0, 1, 3]], SMALL, FEW, 3)[0] > 0


@pytest.mark.parametrize("shape", [(7, 3), (2, 5)])
def test_dci_and_completeness_are_their_sums_written_out(shape: tuple[int, int]) -> None:
    r = np.random.default_rng(0).uniform(size=shape) ** 3
    r[1] = 0

    def literal(rows: list[list[float]], base: int) -> float:
        kept = [row for row in rows if sum(row) > 0]
        entropies = [-sum(x / sum(row) * math.log(x / sum(row), base) for x in row if x > 0) for row in kept]
        total = sum(map(sum, kept))
        return sum((1 - h) * sum(row) / total for h, row in zip(entropies, kept, strict=True))

    assert d.disentanglement(r) == pytest.approx(literal(r.tolist(), shape[1]), abs=1e-6)
    assert d.completeness(r) == pytest.approx(literal(r.T.tolist(), shape[0]), abs=1e-6)


def test_dci_is_scikit_learn_in_a_loop(codes: np.ndarray) -> None:
    state = np.random.RandomState(3)
    (x, y), (test, expected) = batches(codes, FEW.train, state), batches(codes, FEW.test, state)
    models = [GradientBoostingClassifier(random_state=3).fit(x, y[:, k]) for k in range(2)]
    matrix = np.stack([model.feature_importances_ for model in models], axis=1)
    accuracy = np.mean([np.mean(model.predict(test) == expected[:, k]) for k, model in enumerate(models)])
    found = d.importances(codes, SMALL, FEW, 3, "sklearn")
    np.testing.assert_allclose(found.matrix, matrix)
    assert found.accuracy == pytest.approx(accuracy)
    shares = [[value / sum(row) if sum(row) else 0 for value in row] for row in matrix]
    entropies = [-sum(p * math.log(p) for p in row if p > 0) / math.log(2) for row in shares]
    expected_score = sum((1 - h) * sum(row) for h, row in zip(entropies, matrix, strict=True)) / matrix.sum()
    assert d.disentanglement(found.matrix) == pytest.approx(expected_score, abs=1e-6)
    models = [GradientBoostingClassifier(random_state=3).fit(x[:, :1], y[:, k]) for k in range(2)]
    right = [np.mean(model.predict(test[:, :1]) == expected[:, k]) for k, model in enumerate(models)]
    for trees in ("fast", "sklearn"):
        assert d.importances(codes[:, :1], SMALL, FEW, 3, trees).accuracy == pytest.approx(np.mean(right))
    assert np.mean(right) < 0.8  # of the side it tells nothing


def test_compiled_trees_choose_between_equals_by_the_seed_of_the_metrics(codes: np.ndarray) -> None:
    twice = np.concatenate([codes, codes], axis=1)
    state = np.random.RandomState(5)
    (x, y), (test, _) = batches(twice, FEW.train, state), batches(twice, FEW.test, state)
    expected = [boosting.classify(x, y[:, k], test, 5)[0] for k in range(2)]
    found = d.importances(twice, SMALL, FEW, 5, "fast").matrix
    np.testing.assert_allclose(found, np.stack(expected, axis=1))
    assert not np.allclose(found[:, 0], boosting.classify(x, y[:, 0], test, 0)[0])


def test_compiled_trees_give_scikit_learns_scores_where_codes_are_mixed_with_noise() -> None:
    mixed = np.concatenate([IDEAL[:, :4], 0.3 * IDEAL[:, 4:] + NOISE[:, :2]], axis=1).astype(np.float32)
    few = dataclasses.replace(DRAWS, train=600, test=300)
    compiled, plain = (d.importances(mixed, ROOMS, few, 0, trees) for trees in ("fast", "sklearn"))
    assert close(d.disentanglement(compiled.matrix), d.disentanglement(plain.matrix) or 0, 0.01)
    assert close(d.completeness(compiled.matrix), d.completeness(plain.matrix) or 0, 0.01)
    assert compiled.accuracy == pytest.approx(plain.accuracy, abs=0.01)


def test_mig_of_four_cells_by_hand() -> None:
    """The first code tells the first factor, the second tells it for half the cells: of two equal halves one bit, and
    H(1/4) - H(1/2) / 2 = .311 bits; of the second factor the first tells nothing, the second as much."""
    grid = Grid(("a", "b"), (2, 2))
    codes = np.array([[0, 0], [0, 0], [1, 0], [1, 1]], np.float32)
    score = d.mig(codes, grid, dataclasses.replace(DRAWS, train=50_000), 0)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert close(score, ((1 - (quarter - 0.5)) + (quarter - 0.5)) / 2, 0.01)


def test_mig_is_a_loop_over_bins_of_the_same_draws(entangled: np.ndarray) -> None:
    drawn, factors = batches(entangled, FEW.train, np.random.RandomState(3))
    width = np.ptp(drawn, axis=0) / 20
    bins = np.minimum(((drawn - drawn.min(axis=0)) / width).astype(int), 19)

    def information(a: np.ndarray, b: np.ndarray) -> float:
        shares = [(np.mean((a == x) & (b == y)), np.mean(a == x) * np.mean(b == y)) for x in set(a) for y in set(b)]
        return sum(p * math.log(p / q) for p, q in shares if p > 0)

    gaps = []
    for factor in factors.T:
        second, first = sorted(information(factor, code) for code in bins.T)[-2:]
        gaps.append((first - second) / information(factor, factor))
    assert d.mig(entangled, SMALL, FEW, 3) == pytest.approx(np.mean(gaps), rel=1e-9)


@pytest.mark.parametrize("kind", ["codes", "entangled"])
def test_beta_vae_and_sap_are_scikit_learn_in_a_loop(kind: str, request: pytest.FixtureRequest) -> None:
    codes, state = request.getfixturevalue(kind), np.random.RandomState(3)

    def pairs(count: int) -> tuple[list[np.ndarray], list[int]]:
        points, labels = [], []
        for _ in range(count):
            labels.append(state.randint(2))
            first, second = draw(FEW.batch, state), draw(FEW.batch, state)
            second[:, labels[-1]] = first[:, labels[-1]]
            points.append(np.abs(look_up(codes, first) - look_up(codes, second)).mean(axis=0))
        return points, labels

    model = LogisticRegression(max_iter=1000).fit(*pairs(FEW.train))
    assert d.beta_vae(codes, SMALL, FEW, 3) == pytest.approx(model.score(*pairs(FEW.test)))

    state = np.random.RandomState(3)
    (x, y), (test, expected) = batches(codes, FEW.train, state), batches(codes, FEW.test, state)
    gaps = []
    for k in range(2):
        scores = []
        for j in range(4):
            svm = LinearSVC(C=0.01, class_weight="balanced", random_state=3).fit(x[:, [j]], y[:, k])
            scores.append(np.mean(svm.predict(test[:, [j]]) == expected[:, k]))
        gaps.append(sorted(scores)[-1] - sorted(scores)[-2])
    assert d.sap(codes, SMALL, FEW, 3) == pytest.approx(np.mean(gaps))


# ------------------------------------------------------------------------------------------------------- codes
def test_codes_are_scikit_learns_first_components_up_to_the_sign() -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 10
    z[:, 4:] = 7  # a constant code
    found, floor = d.principal(z, 3), d.whole(z, 3)
    for j in range(2):
        pca = PCA(1).fit(z[:, 2 * j : 2 * j + 2])
        expected = pca.transform(z[:, 2 * j : 2 * j + 2])[:, 0]
        np.testing.assert_allclose(np.abs(found.codes[:, j]), np.abs(expected), atol=1e-4)
        assert found.explained[j] == pytest.approx(pca.explained_variance_ratio_[0])
    np.testing.assert_array_equal(found.codes[:, 2], 0)
    assert np.isnan(found.explained[2])
    np.testing.assert_allclose(np.abs(floor.codes), np.abs(PCA(3).fit_transform(z)), atol=1e-4)


# -------------------------------------------------------------------------------------------------- the record
METRICS, SWAPS = ("dci_block", "mig", "beta_vae", "sap"), params.Swaps("shared", 8)
CFG = params.Disentanglement(("rooms",), ("pdae",), METRICS, FEW, "fast", 0, SWAPS)


def files(folder: Path, z: np.ndarray) -> tuple[Path, Path, Path]:
    """Features of a grid of 12 cells, and the records beside them."""
    meta = {"dataset": "rooms", "classes": ["all"], "metric": "accuracy", "image_size": 16, "splits": {"val": [0]}}
    meta |= {"counts": {"train": len(z), "test": 1}, "grid": {"names": SMALL.names, "sizes": SMALL.sizes}}
    zeros = np.zeros(len(z), np.int64)
    store.write(folder / "z.npz", z, zeros, z[:1], zeros[:1])
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "config.json").write_text(json.dumps({"dim": z.shape[1]}))
    return folder / "z.npz", folder / "meta.json", folder / "config.json"


def test_the_record_holds_every_score_with_its_floor(
    tmp_path: Path, codes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a seed and of trees that are not the defaults; the second of two codes is idle, no component of the whole."""
    few_trees = functools.partial(GradientBoostingClassifier, n_estimators=5)
    monkeypatch.setattr(d, "GradientBoostingClassifier", few_trees)
    z, cfg = codes * np.float32([1, 1, 1, 0.01]), dataclasses.replace(CFG, seed=3, trees="sklearn")
    d.run(*files(tmp_path, z), cfg, tmp_path / "out.json", count=2, method="pdae", seed=4)
    record = json.loads((tmp_path / "out.json").read_text())
    code, floor = d.principal(z, 2), d.whole(z, 2)
    expected = {}
    for suffix, part in (("", code.codes), ("_floor", floor.codes)):
        found = d.importances(part, SMALL, FEW, 3, "sklearn")
        expected |= {
            f"factorvae{suffix}": d.factor_vae(part, SMALL, FEW, 3)[0],
            f"dci{suffix}": d.disentanglement(found.matrix),
            f"completeness{suffix}": d.completeness(found.matrix),
            f"informativeness{suffix}": found.accuracy,
            f"mig{suffix}": d.mig(part, SMALL, FEW, 3),
            f"beta_vae{suffix}": d.beta_vae(part, SMALL, FEW, 3),
            f"sap{suffix}": d.sap(part, SMALL, FEW, 3),
        }
        np.testing.assert_allclose(record["importances"]["floor" if suffix else "codes"], found.matrix)
    block = d.importances(z, SMALL, FEW, 3, "sklearn").matrix
    joined = np.stack([block[0] + block[1], block[2] + block[3]])
    expected |= {"dci_block": d.disentanglement(joined), "dci_block_floor": d.shuffled(block, 2, 3)}
    assert record["scores"] == pytest.approx(expected)
    np.testing.assert_allclose(record["importances"]["block"], joined)
    orders = [np.array(p) for p in itertools.permutations(range(4))]
    by_hand = np.mean([d.disentanglement(block[p].reshape(2, 2, 2).sum(axis=1)) for p in orders])
    assert abs(record["scores"]["dci_block_floor"] - by_hand) < 0.03  # 200 draws of the 24 orders
    assert record["votes"] == d.factor_vae(code.codes, SMALL, FEW, 3)[1].tolist()
    np.testing.assert_allclose(record["std"], code.codes.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(record["explained"], code.explained)
    assert (record["active"], record["active_floor"], record["seed"]) == (1, 2, 4)
    assert record["factors"] == {"colour": 3, "side": 4}


def test_an_encoder_without_pieces_is_scored_by_its_principal_components(tmp_path: Path, codes: np.ndarray) -> None:
    paths = files(tmp_path, codes[:, :3])
    paths[2].write_text(json.dumps({"dim": 3, "encoder": "unet"}))
    d.run(*paths, CFG, tmp_path / "out.json", count=2, method="frozen_dm", seed=0)
    record = json.loads((tmp_path / "out.json").read_text())
    scores, whole = record["scores"], d.whole(codes[:, :3], 2)
    assert scores["mig"] == d.mig(whole.codes, SMALL, FEW, 0)
    for name in ("factorvae", "dci", "dci_block", "mig"):
        assert scores[name] == pytest.approx(scores[f"{name}_floor"])
    assert scores["dci_block"] == pytest.approx(scores["dci"])
    with pytest.raises(UserError, match=r"met 4.*Choose 2 to 3"):
        d.run(*paths, CFG, tmp_path / "more.json", count=4, method="frozen_dm", seed=0)


def test_constant_codes_are_recorded_as_null_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = np.full((12, 4), 2, np.float32)
    d.run(*files(tmp_path, z), CFG, tmp_path / "out.json", count=2, method="pdae", seed=0)
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["scores"]["dci"], record["scores"]["factorvae"], record["active"]) == (None, 0, 0)
    assert record["explained"] == [None, None]
    assert "dci" in (said := capsys.readouterr().err)
    assert "the codes are constant" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"z": 11}, ["holds 11 images", "3 x 4 = 12"]),
        ({"segments": 3}, ["representation.segments: met 3", "z has 4 numbers", "divisor of 4"]),
        ({"segments": 1}, ["representation.segments: met 1", "two or more"]),
        ({"grid": None}, ["no grid of known factors", "Choose one of", "rooms"]),
        ({"train": 2}, ["disentanglement.draws.train: met 2", "values of the factor"]),
    ],
)
def test_what_cannot_be_measured_is_one_message_and_leaves_nothing(
    change: dict[str, Any], words: list[str], tmp_path: Path, codes: np.ndarray
) -> None:
    paths = files(tmp_path, codes[: change.get("z", 12)])
    if "grid" in change:
        meta = json.loads(paths[1].read_text())
        del meta["grid"]
        paths[1].write_text(json.dumps(meta))
    cfg = dataclasses.replace(CFG, draws=dataclasses.replace(FEW, train=change.get("train", FEW.train)))
    with pytest.raises(UserError) as error:
        d.run(*paths, cfg, tmp_path / "out.json", count=change.get("segments", 2), method="pdae", seed=0)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "out.json").exists()
