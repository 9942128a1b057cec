"""Accuracy against hours of training, worked out by hand from small records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffsiam import runtime
from diffsiam.report import accuracy_hours
from tests.report import small_results as small
from tests.report.small_trained import COLLECTED
from tests.report.test_figures import legible, texts

HISTORY = "step,images_per_second\n10,2\n30,1\n"  # at 360 images a step: 1 800 s, then 7 200 s
METHODS = ("untrained", "frozen_dm", "simsiam", "pdae", "diffsiam_hier")


def record(folder: Path, name: str, section: str, history: str, **facts: Any) -> list[Path]:
    made = {"params": {section: {"batch_size": 360}}, "device": "cpu", "collected": COLLECTED} | facts
    runtime.write_json(folder / name, made)
    (folder / "history.csv").write_text(history)
    return [folder / name, folder / "history.csv"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two seeds of every method on three data sets, the pretraining set among them."""
    paths = record(tmp_path / "dm", "training.json", "diffusion", HISTORY)
    results = []
    for i, method in enumerate(METHODS):
        for seed in (0, 1):
            history = "step,loss\n" if method in ("untrained", "frozen_dm") else HISTORY
            whose = {"method": method, "seed": seed}
            paths += record(tmp_path / f"{method}{seed}", "config.json", "representation", history, **whose)
            for k, dataset in enumerate(("sprites", "digits", "photos")):
                results.append(small.linear(method, dataset, seed, 40.0 + 8 * i + seed + k, ci95=3.0 + k))
    paths += small.write(tmp_path / "linear", results)
    return {str(path): path for path in paths}


def test_accuracy_is_the_transfer_mean_and_hours_are_those_of_the_histories(files: dict[str, Path]) -> None:
    frame = accuracy_hours.read(files, "sprites").set_index(["method", "seed"])
    for i, method in enumerate(METHODS):
        row = frame.loc[method, 1]
        assert row["accuracy"] == pytest.approx(40 + 8 * i + 1 + 1.5)
        assert row["ci95"] == pytest.approx(np.hypot(4, 5) / 2)
        assert row["hours"] == pytest.approx(0 if i < 2 else 2.5)
        assert row["below"] == pytest.approx(2.5 if method in ("frozen_dm", "pdae", "diffsiam_hier") else 0)
        assert row["sets"] == "digits, photos"


def test_where_the_pretraining_set_is_the_only_one_it_is_shown(files: dict[str, Path]) -> None:
    kept = {name: path for name, path in files.items() if "digits" not in path.name and "photos" not in path.name}
    frame = accuracy_hours.read(kept, "sprites")
    assert set(frame["sets"]) == {"sprites"}
    assert frame["accuracy"].tolist() == [40 + 8 * i + seed for i in range(5) for seed in (0, 1)]


def test_marks_lie_at_their_hours_and_a_hollow_one_counts_the_diffusion_model(files: dict[str, Path]) -> None:
    fig = accuracy_hours.draw(accuracy_hours.read(files, "sprites"), "sprites")
    legible(fig)
    (ax,) = fig.axes
    hollow = [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert hollow == [(2.5, 50.0), (5.0, 66.0), (5.0, 74.0)]
    for text in texts(fig):
        assert text.get_fontsize() / 72 * 900 / fig.get_size_inches()[0] >= 7, text.get_text()


def test_the_caption_gives_both_with_the_interval_and_the_machine(files: dict[str, Path]) -> None:
    said = accuracy_hours.shows(accuracy_hours.read(files, "sprites"))
    assert said.startswith("mean over digits, photos and 2 seeds, ± half of a 95 % interval over test images, on Linux")
    assert "SimSiam 58.0 ± 3.2 % in 2.5 h, PDAE 66.0 ± 3.2 % in 2.5 h and 2.5 of the diffusion model" in said
