from __future__ import annotations

import numpy as np
import sklearn.datasets
import sklearn.neighbors

from diffsiam.evaluation import knn


def test_predictions_equal_scikit_learns_cosine_neighbours_and_a_plain_count_where_votes_are_tied():
    digits = sklearn.datasets.load_digits()
    x, y = digits.data.astype(np.float32), digits.target
    predicted = knn.predict(x[:1000], y[:1000], x[1000:])
    reference = sklearn.neighbors.KNeighborsClassifier(20, metric="cosine").fit(x[:1000], y[:1000])
    votes = reference.predict_proba(x[1000:])
    first, second = np.sort(votes, axis=1)[:, :-3:-1].T
    clear = first > second
    assert clear.mean() > 0.95
    assert (predicted == reference.predict(x[1000:]))[clear].all()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in np.flatnonzero(~clear):
        nearest = y[:1000][np.argsort(-(unit[:1000] @ unit[1000 + i]))[:20]].tolist()
        assert predicted[i] == max(nearest, key=nearest.count)  # of equals the first


def test_of_tied_classes_the_one_with_the_nearest_image_wins():
    angles = np.array([0.1, 0.2, 0.3, 0.15])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    test = np.array([[1.0, 0.0]], np.float32)
    assert knn.predict(train, np.array([2, 1, 1, 2]), test, k=4) == [2]
    assert knn.predict(train, np.array([1, 2, 2, 1]), test, k=4) == [1]
    assert knn.predict(train, np.array([1, 2, 2, 2]), test, k=4) == [2]
    assert knn.predict(train, np.array([1, 2, 2, 2]), test, k=1) == [1]


def test_length_of_a_feature_does_not_matter_and_zero_is_allowed():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(90, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    labels = rng.integers(0, 3, 90)
    base = knn.predict(train, labels, test)
    assert (knn.predict(train * rng.uniform(0.5, 2, (90, 1)).astype(np.float32), labels, test * 3) == base).all()
    assert knn.predict(train, labels, np.zeros((1, 8), np.float32)).shape == (1,)


def test_blocks_and_order_of_training_images_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(90, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    labels, order = rng.integers(0, 3, 90), rng.permutation(90)
    base = knn.predict(train, labels, test)
    monkeypatch.setattr(knn, "BLOCK", 7)
    assert (knn.predict(train[order], labels[order], test) == base).all()


def test_the_order_that_a_partition_leaves_does_not_matter(monkeypatch):
    """NumPy promises none, and sorts on some processors."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(90, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    labels = rng.integers(0, 3, 90)
    base = knn.predict(train, labels, test, k=6)

    def backwards(a, kth, axis):
        order = np.argsort(a, axis=axis)
        return np.concatenate([order[:, kth::-1], order[:, kth + 1 :]], axis=axis)

    monkeypatch.setattr(np, "argpartition", backwards)
    assert (knn.predict(train, labels, test, k=6) == base).all()


def test_fewer_training_images_than_neighbours():
    train = np.eye(3, dtype=np.float32)
    assert (knn.predict(train, np.array([1, 1, 0]), train) == 1).all()
