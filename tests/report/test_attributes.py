"""The table of heads and its paired differences, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from diffsiam.errors import UserError
from diffsiam.report import attributes
from tests.report import small_results

SHIPPED = Path(__file__).resolve().parents[2] / "workflow" / "reference" / "diti_attributes.csv"
DRAWS = np.arange(101) / 10  # 0 to 10: percentiles 0.25 and 9.75


def head(
    method: str, seed: int | None, metrics: dict[str, float], dataset: str = "CelebA", **more: Any
) -> dict[str, Any]:
    """A result whose draws are its value and ``DRAWS``."""
    protocol = "attributes" if "ap" in metrics else "regression"
    scores = {n: {"value": x, "ci95": 0.5, "by_label": [x], "draws": (x + DRAWS).tolist()} for n, x in metrics.items()}
    facts = {"method": method, "dataset": dataset, "seed": seed, "protocol": protocol, "choice": "last", "epochs": 15}
    floor = dict.fromkeys(metrics, 10.0)
    return facts | {"n_train": 90, "n_test": 50, "metrics": scores, "floor": floor} | more


def make(tmp_path: Path, results: list[dict], reference: Path = SHIPPED, n_train: int = 182_637) -> Path:
    out = tmp_path / "table_attributes.csv"
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"dataset": "CelebA", "counts": {"train": n_train, "test": 19_962}}))
    paths = []
    for i, result in enumerate(results):
        paths += small_results.write(tmp_path / str(i), [result])
    shape = {"encoder_width": 32, "dim": 256, "segments": 32, "image_size": 32, "params": {"representation": {}}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(shape | {"method": "pdae", "seed": 0}))
    attributes.run(paths, [meta], [config], reference, "CelebA", out)
    return out


RESULTS = [
    head("diti", 0, {"ap": 44.0}),
    head("diti", 1, {"ap": 50.0}),
    head("pdae", 0, {"ap": 40.0}),
    head("pdae", 1, {"ap": 42.0}),
    head("untrained", 0, {"ap": 30.0}),
    head("untrained", 1, {"ap": 32.0}),
    head("pixels", None, {"ap": 25.0}),
]


def test_every_result_is_a_row_with_the_floors_first(tmp_path: Path) -> None:
    frame = pd.read_csv(make(tmp_path, RESULTS))
    assert list(frame.columns) == [*attributes.COLUMNS, "paper_value"]
    assert list(frame["method"]) == ["mean", "pixels", *2 * ["untrained"], *2 * ["pdae"], *2 * ["diti"]]
    assert list(frame["value"]) == [10, 25, 30, 32, 40, 42, 44, 50]
    assert frame["pretrain"].tolist()[2:] == 6 * ["CelebA"]
    assert frame[["pretrain", "seed"]].head(2).isna().all(axis=None)
    assert frame["paper_value"].isna().all()


def test_the_table_shows_means_with_intervals_and_spreads_and_marks_the_best(tmp_path: Path) -> None:
    rows = small_results.rows(make(tmp_path, RESULTS).with_suffix(".md").read_text())
    assert rows["",] == ["CelebA AP"]
    assert "Encoders: ResNet-10, width 32, d = 256" in (tmp_path / "table_attributes.md").read_text()
    assert rows["Prediction of the mean",] == ["10.00"]
    assert rows["Raw pixels",] == ["25.00 ± 0.50"]
    assert rows["DiTi",] == ["**47.00 ± 0.50 (4.24)**"]  # 44 and 50: root of 2 * 9 / 1
    assert "\\textbf{47.00 $\\pm$ 0.50 (4.24)}" in (tmp_path / "table_attributes.tex").read_text()


def test_of_squared_errors_the_smallest_is_the_best(tmp_path: Path) -> None:
    floor = {"r": 0.0, "mse": 1.0}
    results = [
        head(*whose, scores, "LFW", floor=floor)
        for whose, scores in ((("pdae", 0), {"r": 0.5, "mse": 0.4}), (("pixels", None), {"r": 0.2, "mse": 0.9}))
    ]
    rows = small_results.rows(make(tmp_path, results).with_suffix(".md").read_text())
    assert rows["",] == ["LFW r", "LFW MSE"]
    assert rows["PDAE",] == ["**0.500 ± 0.500**", "**0.4000 ± 0.5000**"]


def test_differences_are_taken_draw_by_draw_over_the_mean_of_the_seeds(tmp_path: Path) -> None:
    """Draws of one sequence: of plain differences nothing would vary, so one seed's are turned round."""
    turned = [*RESULTS]
    turned[1] = head("diti", 1, {"ap": 50.0})
    turned[1]["metrics"]["ap"]["draws"] = (50 + DRAWS[::-1]).tolist()
    make(tmp_path, turned)
    frame = pd.read_csv(tmp_path / "paired_attributes.csv").set_index(["method", "against"])
    row = frame.loc[("diti", "pdae")]
    assert row["difference"] == pytest.approx((4 + 8) / 2)
    assert row["spread"] == pytest.approx(8**0.5, abs=1e-4)  # 4 and 8
    # Mean over seeds of (44 + x - 40 - x) and (50 + 10 - x - 42 - x): 11 - x, x from 0 to 10.
    assert row["ci95"] == pytest.approx((9.75 - 0.25) / 2, abs=1e-4)
    assert frame.loc[("pdae", "untrained"), "ci95"] == 0
    assert set(frame.index) == {
        ("pdae", "untrained"), ("diti", "untrained"), ("diti", "pdae"),
        *((name, "pixels") for name in ("untrained", "pdae", "diti")),
    }  # fmt: skip
    assert "| DiTi minus PDAE | +6.00 ± 4.75 (2.83) |" in (tmp_path / "table_attributes.md").read_text()


@pytest.mark.parametrize(("n_train", "shown"), [(182_637, True), (7_600, False)])
def test_published_numbers_stand_beside_data_sets_of_the_published_counts_alone(
    tmp_path: Path, n_train: int, shown: bool
) -> None:
    reference = tmp_path / "published.csv"
    reference.write_text("method,pretrain,dataset,metric,paper_value\nditi,CelebA,CelebA,ap,61.5\n")
    out = make(tmp_path, RESULTS, reference, n_train)
    frame = pd.read_csv(out).set_index("method")
    assert frame.loc["diti", "paper_value"].notna().all() == shown
    assert ("| DiTi (published) | 61.50 |" in out.with_suffix(".md").read_text()) == shown


def test_a_choice_by_the_test_images_is_named_a_leak(tmp_path: Path) -> None:
    honest = attributes.note([head("pdae", 0, {"r": 0.5}, "LFW")])
    leaky = attributes.note([head("pdae", 0, {"r": 0.5}, "LFW", choice="best_test")])
    assert "regression: the last" in honest
    assert "leak" not in honest
    assert "regression: the best on the TEST images" in leaky
    assert "leak" in leaky


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([*RESULTS[:-1], head("pixels", None, {"ap": 25.0}, n_test=49)], r"different test images or draws: .*49.*50"),
        ([*RESULTS, head("ditti", 0, {"ap": 1.0})], r"unknown method 'ditti'"),
        (RESULTS[1:], r"no result of diti at seed 0 for attributes on CelebA"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, results: list[dict], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(tmp_path, results)
    assert not (tmp_path / "table_attributes.csv").exists()
