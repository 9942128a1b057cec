"""The table of trials, from hand-made results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from diffsiam import params, schema
from diffsiam.report import searched

ROOT = Path(__file__).resolve().parents[2]
META = {"dataset": "sprites", "splits": {"val": list(range(400))}}


def trial(
    folder: Path, method: str, name: str, seed: int, best: float, settings: dict[str, Any], peak: float = 1.0
) -> Path:
    """What a trial leaves; the test accuracy (99) must not show."""
    place = folder / method / name / f"seed{seed}"
    place.mkdir(parents=True)
    curve = [{"l2": l2, "accuracy": best - 3 * abs(l2 - peak)} for l2 in (10.0, 1.0, 0.1)]
    found = {"method": method, "dataset": "sprites", "seed": seed, "accuracy": 99.0, "validation": curve}
    (place / "linear_sprites.json").write_text(json.dumps(found))
    record = {"seconds": 12.0, "params": {"representation": {"steps": 5, **settings}}}
    (place / "config.json").write_text(json.dumps(record))
    (place / "history.csv").write_text(f"step,participation\n1,9.5\n5,{best / 10}\n")
    return place / "linear_sprites.json"


@pytest.fixture
def probes(tmp_path: Path) -> list[Path]:
    made = []
    for seed in (100, 101):
        for rate, best in ((0.01, 40.0), (0.05, 60.0)):
            given, name = {"optimizer": {"name": "sgd", "learning_rate": rate}}, f"optimizer.learning_rate={rate}"
            made.append(trial(tmp_path, "simsiam", name, seed, best + seed - 100, given))
        for weight, best in ((1.0, 50.0), (30.0, 50.0)):
            given = {"optimizer": {"name": "sgd", "learning_rate": 0.05}, "diffusion_weight": weight}
            made.append(trial(tmp_path, "pdae", f"diffusion_weight={weight}", seed, best, given))
    return made


def test_a_row_has_the_best_validation_accuracy_and_the_settings_that_differ(probes: list[Path]) -> None:
    frame = searched.table(probes, images=400)
    assert list(frame.columns) == [
        *("method", "trial", "seed", "optimizer.learning_rate", "diffusion_weight"),
        *("accuracy", "ci95", "l2", "at_edge", "participation", "seconds", "chosen"),
    ]
    rows = frame.set_index(["method", "trial", "seed"])
    best = rows.loc["simsiam", "optimizer.learning_rate=0.05", 101]
    assert (best["accuracy"], best["l2"], best["at_edge"]) == (61.0, 1.0, False)
    assert best["optimizer.learning_rate"] == "0.05"
    assert best["ci95"] == pytest.approx(196 * (0.61 * 0.39 / 400) ** 0.5)
    assert best["participation"] == pytest.approx(6.1)
    assert pd.isna(best["diffusion_weight"])
    assert (frame["accuracy"] < 99).all()


def test_the_trial_with_the_highest_mean_over_seeds_is_chosen_and_of_equals_the_first(probes: list[Path]) -> None:
    frame = searched.table(probes, images=400)
    chosen = frame.loc[frame["chosen"], ["method", "trial"]].drop_duplicates()
    assert [tuple(row) for row in chosen.to_numpy()] == [
        ("simsiam", "optimizer.learning_rate=0.05"),
        ("pdae", "diffusion_weight=1.0"),
    ]


def test_a_lucky_seed_does_not_choose(tmp_path: Path) -> None:
    given = {"steady": (50.0, 50.0, 50.0), "lucky": (40.0, 40.0, 58.0)}
    found = [trial(tmp_path, "pdae", name, seed, x, {}) for name, xs in given.items() for seed, x in enumerate(xs)]
    frame = searched.table(found, images=400)
    assert set(frame.loc[frame["chosen"], "trial"]) == {"steady"}


def test_a_penalty_at_either_end_of_the_grid_is_told(tmp_path: Path) -> None:
    found = [trial(tmp_path, "pdae", "given", i, 50.0, {}, peak) for i, peak in enumerate((10.0, 1.0, 0.1))]
    frame = searched.table(found, images=400)
    assert (frame["l2"].tolist(), frame["at_edge"].tolist()) == ([10, 1, 0.1], [True, False, True])
    assert "| at an end of the grid |" in searched.markdown(frame, META)  # of any seed
    assert "at an end" not in searched.markdown(searched.table(found[1:2], images=400), META)


def test_the_page_ranks_trials_and_ends_with_settings_that_params_yaml_takes(
    probes: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "meta.json").write_text(json.dumps(META))
    searched.run(probes, tmp_path / "meta.json", tmp_path / "search.csv")
    text = (tmp_path / "search.md").read_text()
    first, second = "| optimizer.learning_rate 0.05 | **60.50 ± ", "| optimizer.learning_rate 0.01 | 40.50"
    assert -1 < text.find(first) < text.find(second)
    half = 98 * (0.6 * 0.4 / 400) ** 0.5 + 98 * (0.61 * 0.39 / 400) ** 0.5  # the mean of both seeds'
    assert f"**60.50 ± {half:.2f} ({0.5**0.5:.2f})**" in text
    assert "on 400 validation images" in text
    assert "Seeds: 100, 101." in text
    own = yaml.safe_load(text.partition("```yaml\n")[2].removesuffix("```\n"))
    assert own == {
        "by_method": {
            "simsiam": {"representation": {"optimizer": {"learning_rate": 0.05}}},
            "pdae": {"representation": {"diffusion_weight": 1.0}},
        }
    }
    params.check(schema.merge(yaml.safe_load((ROOT / "workflow/presets/demo.yaml").read_text()), own))


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        ({"a": 0.01, "b": 0.05, "c": 0.1}, "SimSiam's optimizer.learning_rate 0.1 is the largest: a better"),
        ({"a": 0.05, "c": 0.01, "b": 0.1}, "SimSiam's optimizer.learning_rate 0.01 is the smallest: a better"),
        ({"a": 0.01, "c": 0.05, "b": 0.1}, ""),
        ({"b": 0.05, "c": 0.1}, ""),  # of two one is always the end
    ],
)
def test_a_chosen_number_at_an_end_of_those_that_were_tried_is_told(
    tried: dict[str, float], said: str, tmp_path: Path
) -> None:
    accuracies = {"a": 40.0, "b": 50.0, "c": 60.0}
    found = [
        trial(tmp_path, "simsiam", name, 100, accuracies[name], {"optimizer": {"learning_rate": rate}, "stem": name})
        for name, rate in tried.items()
    ]
    text = searched.markdown(searched.table(found, images=400), META)
    assert (said in text) if said else ("Of what was tried" not in text)
