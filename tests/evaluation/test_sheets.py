"""Sheets of planted features, against plain loops and scikit-learn."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
from sklearn.manifold import TSNE
from sklearn.metrics import average_precision_score, pairwise_distances
from sklearn.preprocessing import normalize

from diffsiam import cli, params, runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import sheets, store

CFG = params.Sheets(queries=3, neighbours=4, points=60, perplexity=5.0, seed=0)
TRAIN, TEST, SIDE, WIDTH = 80, 70, 4, 12
SEGMENTS = 4
EDGES = np.arange(0, WIDTH + 1, WIDTH // SEGMENTS)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def prepared(folder: Path, rng: np.random.Generator, classes: int = 3, attributes: int = 2) -> Path:
    """A data set whose labels are drawn; with one class it has attributes alone."""
    names = [f"a{i}" for i in range(attributes)]
    meta = {"dataset": "birds", "classes": [f"c{i}" for i in range(classes)], "metric": "accuracy", "attributes": names}
    meta |= {"counts": {"train": TRAIN, "test": TEST}, "splits": {"val": [0]}, "image_size": SIDE}
    runtime.write_json(folder / "meta.json", meta)
    for part, count in meta["counts"].items():
        np.save(folder / f"images_{part}.npy", rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))
        np.save(folder / f"labels_{part}.npy", rng.integers(0, classes, count))
        np.save(folder / f"attributes_{part}.npy", rng.integers(0, 2, (count, attributes), np.uint8))
    return folder


def features(data: Path, train: np.ndarray, test: np.ndarray, *, edges: np.ndarray | None = EDGES) -> None:
    labels, labels_test = (np.load(data / f"labels_{part}.npy") for part in ("train", "test"))
    store.write(data / "z.npz", train, labels, test, labels_test, edges=edges)


def made(kind: str, data: Path, **whose: Any) -> dict[str, Any]:
    out = data / f"{kind}.out"
    sheets.run(kind, data, CFG, out, **{"method": "diti", "features": data / "z.npz"} | whose)
    return json.loads(out.read_text()) if kind == "segments" else dict(np.load(out))


# -------------------------------------------------------------------------------------------------- neighbours
def ranked(z: np.ndarray, i: int) -> list[int]:
    """All other images, by cosine, nearest first."""
    cosines = [float(a @ z[i] / np.linalg.norm(a) / np.linalg.norm(z[i])) for a in z]
    return [j for j in np.argsort(-np.array(cosines), kind="stable").tolist() if j != i]


def test_neighbours_are_the_nearest_others_by_cosine_and_agree_as_counted(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data, z = prepared(tmp_path, rng), rng.normal(size=(TEST, WIDTH)) * rng.uniform(0.1, 9, (TEST, 1))
    features(data, rng.normal(size=(TRAIN, WIDTH)), z)
    found = made("neighbours", data)
    images, labels = np.load(data / "images_test.npy"), np.load(data / "labels_test.npy")
    shares = [np.mean([labels[j] == labels[i] for j in ranked(z, i)[:4]]) for i in range(TEST)]
    assert found["agreement"] == pytest.approx(np.mean(shares))
    assert found["ci95"] == pytest.approx(1.96 * np.std(shares) / TEST**0.5)
    pairs = [labels[i] == labels[j] for i, j in itertools.permutations(range(TEST), 2)]
    assert found["chance"] == pytest.approx(np.mean(pairs))
    assert len(set(found["queries"].tolist())) == 3
    for row, i in enumerate(found["queries"].tolist()):
        nearest = ranked(z, i)[:4]
        assert found["nearest"][row].tolist() == nearest
        assert np.array_equal(found["images"][row], images[[i, *nearest]])
        assert found["same"][row].tolist() == [float(labels[j] == labels[i]) for j in nearest]


def test_an_image_is_no_neighbour_of_itself_though_another_is_equal_to_it(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data, z = prepared(tmp_path, rng), rng.normal(size=(TEST, WIDTH))
    z[35:] = z[:35]
    features(data, z[:1].repeat(TRAIN, axis=0), z)
    found = made("neighbours", data)
    for i, nearest in zip(found["queries"].tolist(), found["nearest"].tolist(), strict=True):
        assert i not in nearest
        assert nearest[0] == (i + 35) % TEST


def test_without_classes_neighbours_agree_in_attributes_and_pixels_are_compared_as_they_are(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = prepared(tmp_path, rng, classes=1)
    found = made("neighbours", data, method="pixels", features=None)
    flat, y = np.load(data / "images_test.npy").reshape(TEST, -1).astype(float), np.load(data / "attributes_test.npy")
    distances = pairwise_distances(flat) + np.diag(np.full(TEST, np.inf))
    nearest = np.argsort(distances, axis=1)[:, :4]
    assert np.array_equal(found["nearest"], nearest[found["queries"]])
    assert found["agreement"] == pytest.approx(np.mean([y[j] == y[i] for i in range(TEST) for j in nearest[i]]))
    pairs = [y[i] == y[j] for i, j in itertools.permutations(range(TEST), 2)]
    assert found["chance"] == pytest.approx(np.mean(pairs))
    assert not found["classes"]


def test_every_encoder_is_asked_about_the_same_images_and_unlabelled_ones_have_no_agreement(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = prepared(tmp_path, rng, classes=1, attributes=0)
    features(data, rng.normal(size=(TRAIN, WIDTH)), rng.normal(size=(TEST, WIDTH)))
    z, pixels = made("neighbours", data), made("neighbours", data, method="pixels", features=None)
    assert np.array_equal(z["queries"], pixels["queries"])
    assert np.isnan([z["agreement"], z["chance"]]).all()


# --------------------------------------------------------------------------------------------------- embedding
def literal_trustworthiness(x: np.ndarray, xy: np.ndarray, k: int = 5) -> float:
    """Venna & Kaski 2001, sum by sum, by cosine in ``x``."""
    n, lost = len(x), 0
    place = pairwise_distances(xy) + np.diag(np.full(n, np.inf))
    for i in range(n):
        order = ranked(x, i)
        lost += sum(max(0, order.index(j) + 1 - k) for j in np.argsort(place[i])[:k].tolist())
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * lost


def test_a_map_keeps_groups_apart_and_says_how_far_to_trust_it(tmp_path: Path, rng: np.random.Generator) -> None:
    data, group = prepared(tmp_path, rng), np.arange(TEST) % 2
    z = rng.normal(size=(TEST, WIDTH)) + 20 * group[:, None] * np.eye(WIDTH)[0] + 5
    features(data, rng.normal(size=(TRAIN, WIDTH)), z)
    found = made("embedding", data)
    rows, xy = found["rows"], found["xy"]
    assert xy.shape == (60, 2)
    assert len(set(rows.tolist())) == 60
    assert np.array_equal(found["shown"][:, 0], np.load(data / "labels_test.npy")[rows])
    middles = [xy[group[rows] == k].mean(axis=0) for k in (0, 1)]
    assert np.array_equal(pairwise_distances(xy, middles).argmin(axis=1), group[rows])
    assert found["trustworthiness"] == pytest.approx(literal_trustworthiness(z[rows], xy), abs=1e-6)
    assert np.array_equal(made("embedding", data)["xy"], xy)
    points = normalize(z[rows].astype(np.float32))
    theirs = TSNE(perplexity=5, init="pca", random_state=0, n_jobs=1).fit_transform(points)
    np.testing.assert_allclose(xy, theirs, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- segments
def planted(data: Path, rng: np.random.Generator, where: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Features of 4 segments of 3 numbers: attribute a is told by segment ``where[a]``, and by no other."""
    z = []
    for part, count in (("train", TRAIN), ("test", TEST)):
        y, noise = np.load(data / f"attributes_{part}.npy"), rng.normal(size=(count, WIDTH))
        for a, segment in enumerate(where):
            noise[:, 3 * segment + a] += 4.0 * y[:, a]
        z.append(noise.astype(np.float32))
    return z[0], z[1]


def test_segments_are_scored_as_scikit_learn_scores_a_ridge_regression_of_each_label_on_each(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = prepared(tmp_path, rng)
    train, test = planted(data, rng, (0, 3))
    features(data, train, test)
    found, train, test = made("segments", data), train.astype(float), test.astype(float)
    y, y_test = (np.load(data / f"attributes_{part}.npy") for part in ("train", "test"))
    cuts = [slice(3 * k, 3 * k + 3) for k in range(SEGMENTS)] + [slice(None)]
    expected = []
    for cut, a in itertools.product(cuts, range(2)):
        mean, std = train[:, cut].mean(axis=0), train[:, cut].std(axis=0)
        model = sklearn.linear_model.RidgeCV(np.geomspace(1e-3, 1e5, 9)).fit((train[:, cut] - mean) / std, y[:, a])
        score = model.predict((test[:, cut] - mean) / std)
        expected.append(100 * average_precision_score(y_test[:, a], score))
    np.testing.assert_allclose([*np.ravel(found["ap"]), *found["all"]], expected, rtol=1e-4)
    np.testing.assert_allclose(found["chance"], 100 * y_test.mean(axis=0))
    assert np.argmax(found["ap"], axis=0).tolist() == [0, 3]


@pytest.mark.parametrize(("where", "apart"), [((0, 3), True), ((3, 0), True), ((2, 2), False)])
def test_whether_attributes_lie_apart_is_seen_on_the_half_that_did_not_choose_them(
    where: tuple[int, int], apart: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = prepared(tmp_path, rng)
    features(data, *planted(data, rng, where))
    found = made("segments", data)
    assert (found["ci95"][0] > 0) == apart
    assert found["ci95"][0] <= found["difference"] <= found["ci95"][1]
    if apart:
        assert [found["low"], found["high"]] == [f"a{i}" for i in np.argsort(where)]
        assert found["difference"] > 0.5


def test_the_difference_of_centres_and_its_interval_are_those_of_loops_over_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sheets, "_DRAWS", 15)
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, (TEST, 4))
    predicted = [0.7 * y * share + rng.normal(size=y.shape) for share in rng.uniform(0, 1, (3, 4))]
    halves = np.array_split(rng.permutation(TEST), 2)

    def placed(rows: np.ndarray) -> list[float]:
        """The centre of each attribute, of images that may come several times."""
        found = []
        for a in range(4):
            chance = y[rows, a].mean()
            above = [max(average_precision_score(y[rows, a], p[rows, a]) - chance, 0) for p in predicted]
            found.append((0.5 * above[1] + above[2]) / sum(above))
        return found

    chosen, once = placed(halves[0]), placed(halves[1])
    low, high = int(np.argmin(chosen)), int(np.argmax(chosen))
    assert (low, high) != (int(np.argmin(once)), int(np.argmax(once)))
    draws = runtime.rng(5, "heads/bootstrap", "birds")
    drawn = [placed(halves[1][draws.integers(35, size=35)]) for _ in range(15)]
    ends = np.percentile([c[high] - c[low] for c in drawn], [2.5, 97.5])
    found = sheets.apart(y, predicted, halves, 5, "birds")
    assert found == (low, high, pytest.approx(once[high] - once[low], rel=1e-4), pytest.approx(ends.tolist(), rel=1e-4))


def test_the_seed_of_the_sheets_draws_the_halves_and_the_images_behind_the_interval(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = prepared(tmp_path, rng), []
    features(data, *planted(data, rng, (0, 3)))
    monkeypatch.setattr(sheets, "apart", lambda *given: (seen.append(given[2:]), (0, 1, 0.5, [0.0, 1.0]))[1])
    sheets.run(
        "segments", data, dataclasses.replace(CFG, seed=6), data / "o.json", method="diti", features=data / "z.npz"
    )
    ((halves, seed, dataset),) = seen
    order = runtime.rng(6, "sheets/halves", "birds").permutation(TEST)
    assert [half.tolist() for half in halves] == [order[:35].tolist(), order[35:].tolist()]
    assert (seed, dataset) == (6, "birds")


def test_centres_are_the_weighted_means_written_out() -> None:
    ap, chance = np.array([[50.0, 20.0], [30.0, 20.0], [60.0, 10.0]]), np.array([40.0, 25.0])
    found = sheets.centres(ap, chance)
    assert found[0] == pytest.approx((10 * 0 + 0 * 0.5 + 20 * 1) / 30)
    assert found[1] == 0.5  # no segment is above chance
    assert sheets.centres(np.stack([ap, ap], axis=1), np.stack([chance, chance]))[1, 0] == found[0]


# -------------------------------------------------------------------------------------------------- what fails
def refused(kind: str, data: Path, words: str, cfg: params.Sheets = CFG, **whose: Any) -> None:
    given: dict[str, Any] = {"method": "diti", "features": data / "z.npz"} | whose
    with pytest.raises(UserError, match=words):
        sheets.run(kind, data, cfg, data / "out.npz", **given)
    assert not (data / "out.npz").exists()


def test_what_cannot_be_shown_is_refused_in_one_message(tmp_path: Path, rng: np.random.Generator) -> None:
    data = prepared(tmp_path, rng)
    features(data, rng.normal(size=(TRAIN, WIDTH)), np.ones((TEST, WIDTH)))
    refused("embedding", data, "all 60 test images of birds are equal")
    refused("embedding", data, r"perplexity: met 20 for 60 .* less than 20", params.Sheets(3, 4, 60, 20.0, 0))
    refused("neighbours", data, r"met 70 and 3, but birds has 70 test images", params.Sheets(3, 70, 60, 5.0, 0))
    refused("neighbours", data, "--method pixels is the images themselves", features=None)
    refused(
        "segments", data, r"--features None: of no z with segments\. .* by one of diti,", features=None, method="pixels"
    )
    features(data, rng.normal(size=(TRAIN, WIDTH)), rng.normal(size=(TEST, WIDTH)), edges=None)
    refused("segments", data, r"z.npz: of no z with segments")
    (tmp_path / "plain").mkdir()
    plain = prepared(tmp_path / "plain", rng, attributes=0)
    features(plain, rng.normal(size=(TRAIN, WIDTH)), rng.normal(size=(TEST, WIDTH)))
    refused("segments", plain, "birds has no attributes")


def test_the_command_writes_a_sheet_of_pixels(tmp_path: Path, rng: np.random.Generator) -> None:
    data = prepared(tmp_path, rng)
    own = json.dumps({"sheets": {"queries": 2, "neighbours": 3, "points": 9, "perplexity": 2, "seed": 1}})
    words = ["sheet", "neighbours", "--data", str(data), "--method", "pixels", "--out", str(tmp_path / "n.npz")]
    assert cli.main([*words, "--params", own]) == 0
    assert np.load(tmp_path / "n.npz")["images"].shape == (2, 4, SIDE, SIDE, 3)
