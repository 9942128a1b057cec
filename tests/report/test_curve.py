"""Linear accuracy over training, from hand-made results."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from diffsiam.errors import UserError
from diffsiam.report import curve


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    """Two methods, two seeds, two points; the test accuracy (0) must not show."""
    paths = []
    for m, method in enumerate(("simsiam", "diffsiam_hier")):
        for seed in (0, 1):
            for step in (5, 10):
                for d, dataset in enumerate(("sprites", "digits", "photos")):
                    best = 50.0 + 10 * m + seed + step / 10 + d
                    found = {"method": method, "dataset": dataset, "seed": seed, "accuracy": 0.0}
                    found["knn"] = {"accuracy": 0.0, "validation": best - 9}
                    found["rank"] = {"rankme": 7.5, "participation": 2.5} | ({"segments_r2": 0.25} if m else {})
                    found["validation"] = [{"l2": l2, "accuracy": best - 3 * abs(l2 - 1)} for l2 in (10.0, 1.0, 0.1)]
                    paths.append(tmp_path / method / f"seed{seed}" / f"step{step}" / f"{dataset}.json")
                    paths[-1].parent.mkdir(parents=True, exist_ok=True)
                    paths[-1].write_text(json.dumps(found))
    return paths


def test_the_table_holds_the_best_validation_accuracy_of_each_point(results: list[Path], tmp_path: Path) -> None:
    curve.run(results, "sprites", tmp_path / "curve.csv")
    rows = pd.read_csv(tmp_path / "curve.csv").set_index(["method", "seed", "step", "dataset"])["accuracy"]
    assert len(rows) == 24
    assert rows["simsiam", 0, 5, "sprites"] == 50.5
    assert rows["diffsiam_hier", 1, 10, "photos"] == 64.0
    row = pd.read_csv(tmp_path / "curve.csv").iloc[-1]
    assert (row["method"], row["knn"], row["rankme"], row["participation"]) == ("diffsiam_hier", 55.0, 7.5, 2.5)
    assert row["segments_r2"] == 0.25
    assert pd.isna(pd.read_csv(tmp_path / "curve.csv")["segments_r2"][0])
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")


def test_panels_are_the_pretraining_set_and_the_mean_over_the_others(results: list[Path]) -> None:
    own, others = curve.draw(curve.table(results), "sprites").axes
    assert own.get_title() == "Linear, sprites"
    simsiam, _, hier, _ = own.get_lines()  # the mean over seeds, then its dots
    assert simsiam.get_label() == "SimSiam"
    assert list(simsiam.get_xdata()) == [5, 10]
    assert list(simsiam.get_ydata()) == [51.0, 51.5]
    assert list(hier.get_ydata()) == [61.0, 61.5]
    mean = others.get_lines()[0]
    assert list(mean.get_ydata()) == pytest.approx([52.5, 53.0])  # 1.5 above sprites: digits 1, photos 2


def test_the_untrained_encoder_is_a_line_all_along(results: list[Path], tmp_path: Path) -> None:
    for seed, accuracy in ((0, 40.0), (1, 42.0)):
        for dataset in ("sprites", "digits", "photos"):
            path = tmp_path / "linear" / "untrained" / f"seed{seed}" / f"{dataset}.json"
            found = json.loads(results[0].read_text()) | {"method": "untrained", "dataset": dataset, "seed": seed}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found | {"validation": [{"l2": 1.0, "accuracy": accuracy}]}))
            results.append(path)
    rows = curve.table(results)
    assert set(rows.loc[rows["method"] == "untrained", "step"]) == {0}
    own, _ = curve.draw(rows, "sprites").axes
    (line,) = [line for line in own.get_lines() if line.get_label() == "Untrained"]
    assert list(line.get_ydata()) == [41.0, 41.0]
    assert len(own.get_lines()) == 5


def test_a_point_without_a_data_set_is_an_error_that_names_it(results: list[Path]) -> None:
    with pytest.raises(UserError, match=r"curve: no result of photos for .* \('diffsiam_hier', 1, 10\)"):
        curve.table(results[:-1])


def test_without_the_pretraining_set_there_is_one_panel(results: list[Path]) -> None:
    (axes,) = curve.draw(curve.table(results), "Bedroom").axes
    assert axes.get_title() == "Linear, Transfer avg."
