"""What linear probes confuse, from stored results, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from diffsiam.report import confusion
from tests.report import small_results as small
from tests.report.test_figures import legible, texts

CLASSES = ["cat", "dog", "ship"]


def result(method: str, seed: int, counts: Any, classes: list[str] = CLASSES, dataset: str = "CIFAR10") -> dict:
    more = {"confusion": np.asarray(counts).tolist(), "per_class": dict.fromkeys(classes, 50.0)}
    return small.linear(method, dataset, seed, 50.0) | more


def found(folder: Path, results: list[dict[str, Any]]) -> list[confusion.Confusion]:
    return confusion.read({str(path): path for path in small.write(folder, results)})


def test_shares_are_of_the_true_class_over_seeds_as_scikit_learn_counts_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth, answers = np.arange(60) % 3, rng.integers(0, 3, (2, 60))
    matrices = [confusion_matrix(truth, a) for a in answers]
    (one,) = found(tmp_path, [result("pdae", seed, m) for seed, m in enumerate(matrices)])
    expected = confusion_matrix(np.tile(truth, 2), answers.ravel(), normalize="true")
    np.testing.assert_allclose(one.shares["pdae"], expected)
    assert one.images.tolist() == [20, 20, 20]


def test_the_pairs_are_those_that_methods_confuse_most_in_the_mean(tmp_path: Path) -> None:
    first, second = [[6, 4, 0], [2, 18, 0], [0, 0, 10]], [[8, 2, 0], [10, 10, 0], [0, 0, 10]]
    (one,) = found(tmp_path, [result("pdae", 0, first), result("simsiam", 0, second)])
    assert one.pairs == [(0, 1), (1, 0)]  # both .3 in the mean: cat as dog stands first; no other is confused
    said = confusion.shows([one])
    z, p, n = 1.959964, 0.4, 10  # Wilson 1927
    middle, half = p + z**2 / 2 / n, z * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5
    low, high = (100 * end / (1 + z**2 / n) for end in (middle - half, middle + half))
    assert f"CIFAR10: cat as dog (PDAE 40 %, {low:.0f} to {high:.0f}; SimSiam 20 %, 6 to 51)." in said
    left, right = confusion.draw([one]).axes
    np.testing.assert_allclose(left.images[0].get_array(), (np.array(first) + second) / [[20], [40], [20]])
    assert [line.get_xdata() for line in right.lines] == [pytest.approx([40, 10]), pytest.approx([20, 50])]
    assert [label.get_text() for label in right.get_yticklabels()] == ["cat as dog", "dog as cat"]


def test_without_a_mistake_there_is_nothing_to_show_and_a_class_without_images_is_none(tmp_path: Path) -> None:
    (one,) = found(tmp_path, [result("pdae", 0, [[5, 0, 0], [0, 5, 0], [0, 0, 0]])])
    assert one.pairs == []
    assert "CIFAR10: no confusion." in confusion.shows([one])
    confusion.draw([one])


def test_many_classes_and_long_names_can_be_read_where_the_figure_is_900_pixels_wide(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for classes, dataset in ((10, "CIFAR10"), (20, "photos"), (21, "CIFAR100")):
        names = [f"a name of a long class {i}" for i in range(classes)]
        for method in ("untrained", "frozen_dm", "simsiam", "diffsiam_hier"):
            rows.append(result(method, 0, rng.integers(0, 9, (classes, classes)), names, dataset))
    fig = confusion.draw(found(tmp_path, rows))
    shown = [text for text, _ in legible(fig)]
    assert "CIFAR100: 21 classes,\ntoo many for a matrix" in shown
    assert shown.count("DiffSiam hier.") == 1
    for text in texts(fig):
        assert text.get_fontsize() / 72 * 900 / fig.get_size_inches()[0] >= 7, text.get_text()
