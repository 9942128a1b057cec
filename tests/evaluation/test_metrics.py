from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from diffsiam.evaluation import metrics


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(6, size=400, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    return labels, np.where(rng.random(400) < 0.6, labels, rng.integers(0, 6, 400))


def test_confusion_matrix_and_both_metrics_equal_scikit_learns(predictions):
    labels, predicted = predictions
    counts = metrics.confusion(labels, predicted, 6)
    assert (counts == sklearn.metrics.confusion_matrix(labels, predicted)).all()
    accuracy = sklearn.metrics.accuracy_score(labels, predicted)
    balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert metrics.score(counts, "accuracy").accuracy == pytest.approx(100 * accuracy)
    assert metrics.score(counts, "mean_per_class").accuracy == pytest.approx(100 * balanced)
    recall = sklearn.metrics.recall_score(labels, predicted, average=None)
    assert metrics.per_class(counts) == pytest.approx(100 * recall)


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class"])
def test_interval_is_the_spread_of_repeated_draws(metric):
    """The half-width is 1.96 standard deviations of the score over test sets drawn class by class."""
    rng = np.random.default_rng(1)
    images, p = np.array([50, 200, 800]), np.array([0.9, 0.5, 0.7])
    if metric == "accuracy":
        images, p = images[1:2], p[1:2]  # one class: the interval takes all images as draws of one kind
    scores = []
    for _ in range(4000):
        right = rng.binomial(images, p)
        scores.append((100 * right / images).mean())
    right = np.round(p * images).astype(int)
    counts = np.zeros((4, 4), int)
    counts[range(len(p)), range(len(p))] = right
    counts[range(len(p)), -1] = images - right
    assert metrics.score(counts, metric).ci95 == pytest.approx(1.96 * np.std(scores), rel=0.05)


def test_interval_of_a_hand_worked_case():
    counts = np.array([[3, 1], [4, 4]])
    assert metrics.score(counts, "accuracy") == pytest.approx((100 * 7 / 12, 196 * (7 * 5 / 12**3) ** 0.5))
    mean = (0.75 * 0.25 / 4 + 0.5 * 0.5 / 8) ** 0.5 / 2
    assert metrics.score(counts, "mean_per_class") == pytest.approx((62.5, 196 * mean))


def test_a_class_without_test_images_does_not_count():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 2]])
    assert metrics.score(counts, "mean_per_class").accuracy == pytest.approx(87.5)
    assert np.isnan(metrics.per_class(counts)[1])


def test_images_are_packed_class_by_class_and_classes_without_images_have_no_stratum():
    labels = np.array([2, 0, 2, 0, 0])
    packed = metrics.pack(np.array([True, True, False, False, True]), labels)
    assert metrics.unpack(packed, 5).tolist() == [True, False, True, True, False]
    counts = metrics.confusion(labels, labels, 3)
    assert metrics.strata(counts, "mean_per_class").tolist() == [3, 2]
    assert metrics.strata(counts, "accuracy").tolist() == [5]


def test_episode_summary_of_a_hand_worked_case():
    summary = metrics.episode_summary(np.array([30, 60]), queries=75)
    assert summary.pop("correct") == [30, 60]
    assert summary == pytest.approx({"accuracy": 60.0, "std": 20.0, "ci95": 1.96 * 20 / 2**0.5})
