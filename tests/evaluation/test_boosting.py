"""The compiled trees are scikit-learn's: importances and predictions of the same data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from diffsiam.evaluation import boosting


@pytest.mark.parametrize(("classes", "alike"), [((0, 1), 0.9), ((0, 1, 2), 0.99), ((1, 0, 0, 0, 0, 0, 0, 0), 0.99)])
def test_importances_and_predictions_are_scikit_learns(classes: tuple[int, ...], alike: float) -> None:
    """Over seeds, which choose between splits of equal merit: two classes have many in their first trees."""
    rng = np.random.default_rng(0)
    y = np.resize(classes, 400)
    x = rng.normal(size=(400, 4)) + np.outer(y, [1.0, 0.3, 0.0, 0.0])
    x[:, 3] = np.round(x[:, 3])  # many equal values
    x, test = x.astype(np.float32), rng.normal(1, 1.5, size=(300, 4)).astype(np.float32)
    models = [GradientBoostingClassifier(random_state=seed).fit(x, y) for seed in range(3)]
    found = [boosting.classify(x, y, test, seed) for seed in range(3)]
    expected = np.mean([model.feature_importances_ for model in models], axis=0)
    np.testing.assert_allclose(np.mean([importances for importances, _ in found], axis=0), expected, atol=0.01)
    for model, (_, predicted) in zip(models, found, strict=True):
        assert (predicted == model.predict(test)).mean() > alike


def test_features_of_equal_merit_share_the_importance() -> None:
    """What DCI's completeness of duplicated codes rests on."""
    y = np.arange(300) % 3
    x = np.repeat(y[:, None], 2, axis=1).astype(np.float32)
    importances, predicted = boosting.classify(x, y, x, seed=0)
    assert importances.sum() == pytest.approx(1)
    assert importances.min() > 0.2
    np.testing.assert_array_equal(predicted, y)


def test_constants_are_of_no_importance_and_predict_the_commonest_class() -> None:
    y = np.array([0, 1, 1, 2, 1, 0])
    importances, predicted = boosting.classify(np.ones((6, 2)), y, np.zeros((4, 2)), seed=0)
    np.testing.assert_array_equal(importances, 0)
    np.testing.assert_array_equal(predicted, 1)
