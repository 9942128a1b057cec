from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from diffsiam import params
from diffsiam.errors import UserError
from diffsiam.evaluation import linear, metrics, store

CFG = params.Linear(penalties=45, penalty_min=1e-6, penalty_max=1e5, standardize=False, tolerance=1e-5)
COARSE = params.Linear(penalties=8, penalty_min=1e-3, penalty_max=1e4, standardize=False, tolerance=1e-5)
# Digits are separable: with next to no penalty the loss is flat, and only a tight fit pins the model down.
TIGHT = params.Linear(penalties=6, penalty_min=1e-1, penalty_max=1e4, standardize=False, tolerance=1e-7)


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    data = sklearn.datasets.load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target
    return {
        "train": x[:800],
        "labels": y[:800],
        "validation": np.arange(0, 800, 5),
        "test": x[800:],
        "test_labels": y[800:],
    }


def probe(data, cfg=COARSE, metric="accuracy"):
    features = {key: value for key, value in data.items() if key != "test_labels"}
    choice, final, predicted = linear.accuracy(**features, classes=10, cfg=cfg, metric=metric)
    return choice, final, metrics.score(metrics.confusion(data["test_labels"], predicted, 10), metric).accuracy


def test_the_protocol_agrees_with_scikit_learn(digits):
    """Same penalty, or one whose validation accuracy ties; test accuracy within 0.1 points where it is the same."""
    choice, final, accuracy = probe(digits, TIGHT)
    fit = np.setdiff1d(np.arange(800), digits["validation"])
    x, y = digits["train"].astype(np.float64), digits["labels"]
    curve = {}
    for entry in choice.curve:
        model = LogisticRegression(C=1 / entry["l2"], tol=1e-7, max_iter=5000).fit(x[fit], y[fit])
        curve[entry["l2"]] = 100 * model.score(x[digits["validation"]], y[digits["validation"]])
        assert entry["accuracy"] == pytest.approx(curve[entry["l2"]], abs=100 * 1.01 / 160)  # one image
    assert curve[final.penalty] >= max(curve.values()) - 100 * 1.01 / 160
    reference = LogisticRegression(C=1 / final.penalty, tol=1e-7, max_iter=5000).fit(x, y)
    assert accuracy == pytest.approx(100 * reference.score(digits["test"], digits["test_labels"]), abs=0.1)


def test_of_equally_good_penalties_the_largest_is_chosen(digits):
    choice, final, _ = probe(digits, CFG)
    best = max(entry["accuracy"] for entry in choice.curve)
    equals = [entry["l2"] for entry in choice.curve if entry["accuracy"] == best]
    assert final.penalty == choice.model.penalty == max(equals)


def test_the_penalty_is_chosen_by_the_metric_of_the_data_set(digits):
    x, y = digits["train"], np.maximum(digits["labels"] - 4, 0)  # half of the images are of one class
    cfg = dataclasses.replace(COARSE, penalties=3, penalty_min=1, tolerance=1e-6)
    choice = linear.choose(x[:400], y[:400], x[400:], y[400:], 6, cfg, "mean_per_class")
    one_image = 100 * 1.01 / (6 * np.bincount(y[400:]).min())
    for entry in choice.curve:
        model = LogisticRegression(C=1 / entry["l2"], tol=1e-6, max_iter=1000).fit(x[:400], y[:400])
        assert entry["accuracy"] == pytest.approx(
            100 * balanced_accuracy_score(y[400:], model.predict(x[400:])), abs=one_image
        )
    assert choice.curve[0]["accuracy"] < 100 * np.mean(y[400:] == 0) - 10  # hardly more than the one class is found


def test_the_final_model_sees_the_validation_images(digits):
    _, base, _ = probe(digits)
    changed = digits | {"labels": digits["labels"].copy()}
    changed["labels"][digits["validation"]] = (changed["labels"][digits["validation"]] + 1) % 10
    _, other, _ = probe(changed)
    assert np.abs(base.weights - other.weights).max() > 0.01


def test_test_images_do_not_choose(digits):
    choice, _, _ = probe(digits)
    other, _, _ = probe(digits | {"test_labels": (digits["test_labels"] + 1) % 10})
    assert choice.curve == other.curve


def test_permuted_labels_rotated_features_and_another_order_change_no_accuracy(digits):
    choice, _, base = probe(digits, TIGHT)
    rng = np.random.default_rng(0)
    relabel = rng.permutation(10)
    permuted = digits | {k: relabel[digits[k]] for k in ("labels", "test_labels")}
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0].astype(np.float32)
    rotated = digits | {k: digits[k] @ rotation for k in ("train", "test")}
    order = rng.permutation(800)
    shuffled = digits | {"train": digits["train"][order], "labels": digits["labels"][order]}
    shuffled["validation"] = np.flatnonzero(np.isin(order, digits["validation"]))
    one_image = 100 * 1.01 / len(digits["test"])
    for changed in (permuted, rotated, shuffled):
        other, _, accuracy = probe(changed, TIGHT)
        assert other.model.penalty == choice.model.penalty
        assert accuracy == pytest.approx(base, abs=one_image)


def test_constant_features_give_chance(digits):
    constant = digits | {k: np.ones_like(digits[k]) for k in ("train", "test")}
    _, _, accuracy = probe(constant, metric="mean_per_class")
    assert accuracy == pytest.approx(10.0)


def test_standardize_scales_by_the_training_images(digits):
    cfg = params.Linear(8, 1e-3, 1e4, True, 1e-5)
    stretch = 2.0 ** (np.arange(64, dtype=np.float32) % 9 - 4)  # powers of two: not a bit of rounding changes
    stretched = digits | {k: digits[k] * stretch for k in ("train", "test")}
    plain, fit, one = probe(digits, cfg)
    other, scaled, two = probe(stretched, cfg)
    assert (plain.curve, one) == (other.curve, two)
    assert np.array_equal(fit.weights, scaled.weights)
    assert plain.curve != probe(digits)[0].curve
    mean, std = digits["train"].mean(axis=0), digits["train"].std(axis=0)
    by_hand = digits | {k: (digits[k] - mean) / np.where(std == 0, 1, std) for k in ("train", "test")}
    assert probe(by_hand)[2] == one


@pytest.fixture
def files(digits, tmp_path):
    store.write(tmp_path / "f.npz", digits["train"], digits["labels"], digits["test"], digits["test_labels"])
    meta = {
        "dataset": "digits",
        "classes": [f"digit {i}" for i in range(10)],
        "metric": "mean_per_class",
        "counts": {"train": 800, "test": 997},
        "splits": {"val": digits["validation"].tolist()},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path / "f.npz", tmp_path / "meta.json"


def test_run_writes_score_curve_neighbours_and_confusion(digits, files, tmp_path, capsys):
    for name in "ab":
        linear.run(*files, COARSE, tmp_path / name, method="pdae", seed=1)
    assert capsys.readouterr().err == ""
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    result = json.loads((tmp_path / "a").read_text())
    counts = np.array(result["confusion"])
    assert (result["method"], result["dataset"], result["seed"]) == ("pdae", "digits", 1)
    assert (result["n_train"], result["n_test"], counts.sum()) == (800, 997, 997)
    assert (result["metric"], result["at_edge"], result["converged"]) == ("mean_per_class", False, True)
    right = metrics.unpack(result["correct"], 997)  # class by class
    assert np.add.reduceat(right, np.append(0, counts.sum(axis=1).cumsum()[:-1])).tolist() == counts.diagonal().tolist()
    recall = 100 * counts.diagonal() / counts.sum(axis=1)
    assert result["accuracy"] == pytest.approx(recall.mean())
    assert list(result["per_class"].values()) == pytest.approx(recall)
    assert list(result["per_class"])[3] == "digit 3"
    assert result["accuracy"] > 85
    assert result["knn"]["k"] == 20
    neighbours = KNeighborsClassifier(20, metric="cosine").fit(digits["train"], digits["labels"])
    nearest = 100 * balanced_accuracy_score(digits["test_labels"], neighbours.predict(digits["test"]))
    assert result["knn"]["accuracy"] == pytest.approx(nearest, abs=0.5)  # which break ties in another way
    assert abs(nearest - result["accuracy"]) > 1
    fit = np.setdiff1d(np.arange(800), digits["validation"])
    neighbours.fit(digits["train"][fit], digits["labels"][fit])
    told = neighbours.predict(digits["train"][digits["validation"]])
    closest = 100 * balanced_accuracy_score(digits["labels"][digits["validation"]], told)
    assert result["knn"]["validation"] == pytest.approx(closest, abs=1)
    assert "segments_r2" not in result["rank"]
    assert [entry["l2"] for entry in result["validation"]] == pytest.approx(np.geomspace(1e4, 1e-3, 8))
    eigenvalues = np.linalg.eigvalsh(np.cov(digits["test"].astype(np.float64), rowvar=False))  # not the train images'
    assert result["rank"]["participation"] == pytest.approx(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())
    assert 1 < result["rank"]["rankme"] < result["rank"]["dimensions"] == 64


def test_a_best_penalty_at_the_edge_is_warned_about(files, tmp_path, capsys):
    cfg = params.Linear(penalties=3, penalty_min=1e3, penalty_max=1e5, standardize=False, tolerance=1e-5)
    linear.run(*files, cfg, tmp_path / "r", method="pdae", seed=1)
    assert json.loads((tmp_path / "r").read_text())["at_edge"] is True
    assert (
        "pdae on digits: the best penalty, 1000, is at the edge of the grid [1000, 100000]" in capsys.readouterr().err
    )


def test_a_fit_above_the_tolerance_is_warned_about(files, tmp_path, capsys):
    cfg = params.Linear(penalties=3, penalty_min=1e-2, penalty_max=1e2, standardize=False, tolerance=1e-19)
    linear.run(*files, cfg, tmp_path / "r", method="pdae", seed=1)
    assert "ended with a gradient above linear.tolerance, 1e-19" in capsys.readouterr().err


def test_a_bad_features_file_is_an_error_and_leaves_no_result(files, tmp_path):
    files[0].write_bytes(files[0].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"f.npz: not a complete"):
        linear.run(*files, COARSE, tmp_path / "r", method="pdae", seed=1)
    assert not (tmp_path / "r").exists()


def test_a_data_set_without_classes_is_refused_and_leaves_no_result(digits, tmp_path):
    """100 % of its images would be right."""
    labels = {part: np.zeros_like(digits[part]) for part in ("labels", "test_labels")}
    store.write(tmp_path / "f.npz", digits["train"], labels["labels"], digits["test"], labels["test_labels"])
    facts = {"dataset": "Bedroom", "classes": ["bedroom"], "metric": "accuracy"}
    counts = {"counts": {"train": 800, "test": 997}, "splits": {"val": digits["validation"].tolist()}}
    (tmp_path / "meta.json").write_text(json.dumps(facts | counts))
    with pytest.raises(UserError, match=r"Bedroom has no classes to tell apart"):
        linear.run(tmp_path / "f.npz", tmp_path / "meta.json", COARSE, tmp_path / "r", method="m", seed=0)
    assert not (tmp_path / "r").exists()


def test_a_probe_starts_without_scikit_learn_and_pandas() -> None:
    code = "import sys, diffsiam.evaluation.linear; print(sorted({'sklearn', 'pandas', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
