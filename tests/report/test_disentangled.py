"""Scores of disentanglement in tables and pictures: floors beside them, differences by seed, the paper's where due."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from diffsiam import cli
from diffsiam.report import captions, disentangled, factors, figures
from diffsiam.training import methods
from tests.report.test_figures import check_readable

REFERENCE = Path(__file__).resolve().parents[2] / "workflow" / "reference" / "disdiff_tables.csv"
SCORES = {  # FactorVAE and DCI by method and seed
    "pdae": [(0.5, 0.10), (0.6, 0.12), (0.7, 0.17)],
    "disdiff": [(0.8, 0.30), (0.6, 0.36), (0.9, 0.39)],
}


def record(method: str, seed: int, **more: Any) -> dict[str, Any]:
    factorvae, dci = SCORES[method][seed]
    scores = {"factorvae": factorvae, "dci": dci, "factorvae_floor": 0.4, "dci_floor": 0.05}
    return {
        "pretrain": "rooms",
        "method": method,
        "seed": seed,
        "image_size": 16,
        "latent": None,
        "images": 24_192,
        "factors": {"hue": 6, "shape": 4},
        "codes": 3,
        "dim": 12,
        "protocol": {"variance": 10, "train": 40, "test": 20, "batch": 4, "trees": "fast", "seed": 0},
        "scores": scores,
        "active": 2,
        "active_floor": 3,
        "importances": {"codes": [[0.9, 0.1], [0.1, 0.2], [0.0, 0.7]]},
    } | more


def published(**more: Any) -> dict[str, Any]:
    """A run in the paper's own setting."""
    setting = {"pretrain": "Shapes3D", "images": 480_000, "image_size": 64, "latent": "vq", "codes": 10}
    return record("disdiff", 0) | setting | more


def make(folder: Path, records: list[dict[str, Any]]) -> Path:
    paths = []
    for i, each in enumerate(records):
        paths.append(folder / f"{i}.json")
        paths[-1].write_text(json.dumps(each))
    disentangled.run(paths, REFERENCE, folder / "table_disentanglement.csv")
    return folder / "table_disentanglement.csv"


ALL = [record(method, seed) for method in SCORES for seed in range(3)]


def test_the_table_has_a_row_per_encoder_and_score_and_floor(tmp_path: Path) -> None:
    frame = pd.read_csv(make(tmp_path, ALL))
    assert list(frame) == ["pretrain", "method", "seed", "metric", "value", "active", "paper_mean", "paper_std"]
    assert len(frame) == 6 * 4
    row = frame[(frame["method"] == "disdiff") & (frame["seed"] == 1)].set_index("metric")
    assert row["value"].to_dict() == {"factorvae": 0.6, "factorvae_floor": 0.4, "dci": 0.36, "dci_floor": 0.05}
    assert row["active"].to_dict() == {"factorvae": 2, "factorvae_floor": 3, "dci": 2, "dci_floor": 3}
    assert frame[["paper_mean", "paper_std"]].isna().all(axis=None)


def test_markdown_shows_means_spreads_and_the_floor_below_each_method(tmp_path: Path) -> None:
    text = make(tmp_path, ALL).with_suffix(".md").read_text()
    # pdae's FactorVAE: mean .6, root of (.01 + 0 + .01) / 2; DCI: mean .13, root of (.0009 + .0001 + .0016) / 2.
    assert "| PDAE | 0.600 (0.100) | 0.130 (0.036) | 2 |" in text
    assert "| PDAE, its floor | 0.400 (0.000) | 0.050 (0.000) | 3 |" in text
    assert "40 training and 20 test draws, votes of 4, trees: fast, seed 0" in text
    assert "The paper's numbers are left out" in text
    latex = make(tmp_path, ALL).with_suffix(".tex").read_text()
    assert r"PDAE & 0.600 (0.100) & 0.130 (0.036) & 2 \\" in latex


def test_differences_are_paired_by_seed_with_students_interval(tmp_path: Path) -> None:
    frame = disentangled.differences(pd.read_csv(make(tmp_path, ALL))).set_index(["method", "against", "metric"])
    d = np.array([0.3, 0.0, 0.2])  # of FactorVAE, seed by seed
    interval = scipy.stats.t.interval(0.95, 2, loc=d.mean(), scale=d.std(ddof=1) / np.sqrt(3))
    row = frame.loc["disdiff", "pdae", "factorvae"]
    assert row["difference"] == pytest.approx(d.mean())
    assert row["difference"] + row["ci95"] == pytest.approx(interval[1])
    assert frame.loc[("pdae", "its floor", "dci"), "difference"] == pytest.approx(0.08)
    text = (tmp_path / "table_disentanglement.md").read_text()
    assert f"| DisDiff - PDAE | +0.167 ± {row['ci95']:.3f} |" in text


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    text = make(tmp_path, [record("pdae", 0), record("disdiff", 0)]).with_suffix(".md").read_text()
    assert "Paired" not in text
    assert "differences hold its luck" in text


def test_a_score_that_is_not_defined_is_an_empty_cell_with_a_reason(tmp_path: Path) -> None:
    constant = record("pdae", 0)
    constant["scores"] |= {"factorvae": 0.0, "dci": None}
    out = make(tmp_path, [constant])
    assert np.isnan(pd.read_csv(out).set_index("metric").loc["dci", "value"])
    assert "DCI is undefined where all codes are constant: pdae at seed 0." in out.with_suffix(".md").read_text()


def test_the_papers_numbers_stand_beside_a_run_in_its_setting(tmp_path: Path) -> None:
    frame = pd.read_csv(make(tmp_path, [published()])).set_index("metric")
    assert tuple(frame.loc["factorvae", ["paper_mean", "paper_std"]]) == (0.902, 0.043)
    assert tuple(frame.loc["dci", ["paper_mean", "paper_std"]]) == (0.723, 0.013)
    assert frame.loc["dci_floor", ["paper_mean", "paper_std"]].isna().all()
    assert (
        "| DisDiff (paper) | 0.902 (0.043) | 0.723 (0.013) |  |" in (tmp_path / "table_disentanglement.md").read_text()
    )


@pytest.mark.parametrize(
    "other",
    [
        {"latent": None},
        {"image_size": 32},
        {"images": 479_999},
        {"codes": 6},
        {"pretrain": "rooms"},
        {"method": "pdae"},
    ],
)
def test_the_papers_numbers_stand_beside_nothing_else(other: dict[str, Any]) -> None:
    assert disentangled.paper(published(**other), pd.read_csv(REFERENCE)) == {}


def test_without_data_sets_the_table_is_empty_and_says_what_to_do(tmp_path: Path) -> None:
    out = make(tmp_path, [])
    assert list(pd.read_csv(out)["metric"]) == []
    assert "disentanglement.datasets of params.yaml is empty" in (text := out.with_suffix(".md").read_text())
    assert "rooms" in text


# ------------------------------------------------------------------------------------------------ the picture
def test_a_panel_shows_the_importances_of_one_method_on_a_scale_that_all_share() -> None:
    block = [[0.2, 0.1], [0.1, 0.2], [0.7, 0.7]]
    both = [record("pdae", 0), record("disdiff", 0, importances={"codes": [[1, 1], [0, 0], [0, 0]], "block": block})]
    fig = factors.draw(both)
    images = [ax.images[0] for ax in fig.axes if ax.images]
    np.testing.assert_array_equal(images[0].get_array(), both[0]["importances"]["codes"])
    np.testing.assert_array_equal(images[1].get_array(), block)
    assert {image.get_clim() for image in images} == {(0, 0.9)}
    titles = [ax.get_title() for ax in fig.axes if ax.images]
    assert titles[0] == "PDAE\nDCI 0.10 (floor 0.05)\nFactorVAE 0.50 (floor 0.40)"


@pytest.mark.parametrize("count", [1, 4, 7])
def test_panels_stand_in_rows_that_can_be_read_where_the_figure_is_900_pixels_wide(count: int) -> None:
    names = ("untrained", "pdae", "diti", "disdiff_plain", "disdiff", "diffsiam_seq", "diffsiam_hier_detach")
    records = [{**record("pdae", 0), "method": name} for name in names[:count]]
    fig = factors.draw([*records, *({**r, "pretrain": "tiles"} for r in records)])
    check_readable(fig)
    drawn = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title().split("\n")[0] for ax in drawn] == 2 * [methods.lookup(n).title for n in names[:count]]
    assert [text for ax in drawn if (text := ax.get_ylabel())] == [
        f"{name}: code or segment" for name in ("rooms", "tiles") for _ in range(-(-count // 4))
    ]


def test_the_caption_names_the_code_that_carries_a_factor() -> None:
    assert "PDAE on rooms" in (text := factors.shows([record("pdae", 0)]))
    assert "hue 0 (90 %), shape 2 (70 %)" in text


def test_every_figure_of_our_own_has_a_caption_and_the_command_draws_it(tmp_path: Path) -> None:
    assert list(captions.OWN) == list(figures.OWN)
    (tmp_path / "r.json").write_text(json.dumps(record("pdae", 0)))
    named = ["--input", f"pdae={tmp_path / 'r.json'}", "--out", str(tmp_path / "factors.png")]
    assert cli.main(["figure", "factors", "--dataset", "rooms", *named, "--params", "{}"]) == 0
    assert {path.suffix for path in tmp_path.glob("factors.*")} == {".png", ".pdf", ".rst"}
    for word in figures.OWN:
        assert (Path(__file__).resolve().parents[2] / "workflow" / "report" / f"{word}.rst").exists()
