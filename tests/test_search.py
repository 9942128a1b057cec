"""What `search.grid` stands for: which trials, under which names, with which settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffsiam import params, search, stages
from diffsiam.training.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def raw() -> dict[str, Any]:
    demo = yaml.safe_load((ROOT / "workflow" / "presets" / "demo.yaml").read_text())
    return demo | {"by_method": {"pdae": {"representation": {"steps": 9, "ssl_weight": 3.0}}}}


def grid(*entries: tuple[str, dict[str, list[Any]]]) -> dict[str, Any]:
    return {"seeds": [100], "grid": [{"method": method, "settings": settings} for method, settings in entries]}


def test_every_combination_of_an_entry_is_tried_once(raw: dict[str, Any]) -> None:
    rates = {"optimizer.learning_rate": [0.1, 0.2], "fixed_predictor_rate": [True, False]}
    raw["search"] = grid(("simsiam", rates), ("simsiam", {"optimizer.learning_rate": [0.1, 0.3]}), ("pdae", {}))
    params.check(raw)
    found = [(trial.method, trial.settings) for trial in search.trials(raw)]
    pairs = [(0.1, True), (0.1, False), (0.2, True), (0.2, False)]
    products = [{"optimizer.learning_rate": rate, "fixed_predictor_rate": fixed} for rate, fixed in pairs]
    assert found == [
        *(("simsiam", product) for product in products),
        ("simsiam", {"optimizer.learning_rate": 0.1}),
        ("simsiam", {"optimizer.learning_rate": 0.3}),
        ("pdae", {}),
    ]
    twice = grid(("simsiam", {"steps": [5, 6]}), ("simsiam", {"steps": [6]}))
    assert [trial.settings["steps"] for trial in search.trials(raw | {"search": twice})] == [5, 6]
    both = grid(("simsiam", {"steps": [5]}), ("pdae", {"steps": [5]}))
    assert [trial.method for trial in search.trials(raw | {"search": both})] == ["simsiam", "pdae"]


def test_folders_are_named_by_what_is_tried_in_characters_that_a_shell_takes(raw: dict[str, Any]) -> None:
    tried = {"views.crop_scale": [[0.2, 1.0], None], "loss_space": ["noise"]}
    raw["search"] = grid(("diffsiam_hier", tried), ("pdae", {}))
    assert [trial.name for trial in search.trials(raw)] == [
        "views.crop_scale=_0.2_1.0_+loss_space=noise",
        "views.crop_scale=null+loss_space=noise",
        "given",
    ]


def test_a_trial_takes_its_settings_over_the_methods_own_and_keeps_no_encoder_on_the_way(raw: dict[str, Any]) -> None:
    raw["representation"]["snapshots"] = 4
    raw["search"] = grid(("pdae", {"steps": [7], "decoder_optimizer.learning_rate": [0.5]}))
    (trial,) = search.trials(raw)
    before = copy.deepcopy(raw)
    own = stages.share(search.tried(raw, trial), "representation", "sprites", METHODS["pdae"].unused, "pdae")
    assert raw == before
    expected = stages.share(raw, "representation", "sprites", METHODS["pdae"].unused, "pdae")
    assert expected["representation"]["steps"] == 9
    expected["representation"] |= {"steps": 7, "snapshots": 0}
    expected["representation"]["decoder_optimizer"]["learning_rate"] = 0.5
    assert json.dumps(own, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert search.tried(raw, trial)["by_method"]["pdae"]["representation"]["ssl_weight"] == 3.0
