"""What trained the networks: one row per training, hours by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from diffsiam.report import provenance
from tests.report import small_results

COLLECTED = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc1234",
    "python": "3.11.7",
    "machine": "Linux x86_64, 2 cores, Some CPU",
    "gpus": [],
    "versions": {"torch": "2.14.1", "dvc": "3.67.1"},
}
COMPUTED = {"device": "cpu", "precision": "bfloat16", "collected": COLLECTED}


def training(folder: Path, record: dict, history: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(history)
    path = folder / ("config.json" if "method" in record else "training.json")
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def trainings(tmp_path: Path) -> list[Path]:
    """A diffusion model, an untrained encoder, and two trained ones on different machines."""
    encoder = {"seed": 1, "params": {"representation": {"batch_size": 100}}} | COMPUTED
    gpu = {"device": "cuda", "collected": COLLECTED | {"gpus": ["Some GPU"]}}
    return [
        # 90 images at 9 a second, 180 at 18: 20 s.
        training(
            tmp_path / "dm",
            {"params": {"diffusion": {"batch_size": 9, "seed": 7}}} | COMPUTED,
            "step,images_per_second,loss\n10,9,0.5\n30,18,0.25\n",
        ),
        training(tmp_path / "untrained", {"method": "untrained"} | encoder, "step,loss\n"),
        # 36 000 images at 10 a second: an hour.
        training(
            tmp_path / "simsiam",
            {"method": "simsiam"} | encoder,
            "step,images_per_second,loss,spread\n120,10,-0.5,0.9\n360,10,-0.75,0.625\n",
        ),
        training(
            tmp_path / "hier",
            {"method": "diffsiam_hier"} | encoder | gpu,
            "step,images_per_second,loss,spread,participation\n360,5,-0.125,0.5,3.125\n",
        ),
    ]


def test_every_training_has_its_row_also_by_an_older_history_and_hours_count_every_record_at_its_own_rate(
    trainings: list[Path], tmp_path: Path
) -> None:
    provenance.run([], trainings, tmp_path / "provenance.md")
    text = (tmp_path / "provenance.md").read_text()
    found = small_results.rows(text)
    assert found["Diffusion model",] == ["7", "30", "9", "0.006", "0.2500", "", "", "2026-01-02 03:04"]
    assert found["SimSiam",] == ["1", "360", "100", "1.000", "-0.7500", "0.62", "", "2026-01-02 03:04"]
    assert found["DiffSiam hier.",] == ["1", "360", "100", "2.000", "-0.1250", "0.50", "3.12", "2026-01-02 03:04"]
    assert ("Untrained",) not in found
    assert "3.01 hours of training" in text


def test_machines_commits_and_versions_are_named_once_each(trainings: list[Path], tmp_path: Path) -> None:
    provenance.run([], trainings, tmp_path / "provenance.md")
    lines = [line for line in (tmp_path / "provenance.md").read_text().splitlines() if line.startswith("- ")]
    software = "commit abc1234; Python 3.11.7, torch 2.14.1, dvc 3.67.1"
    assert lines == [
        f"- Linux x86_64, 2 cores, Some CPU; computed on cpu in bfloat16; {software}",
        f"- Linux x86_64, 2 cores, Some CPU, Some GPU; computed on cuda in bfloat16; {software}",
    ]


def test_a_fetched_diffusion_model_was_not_trained_here(tmp_path: Path) -> None:
    fetched = training(tmp_path / "dm", {"fetched": {}, "collected": COLLECTED}, "step,loss\n")
    provenance.run([], [fetched], tmp_path / "provenance.md")
    text = (tmp_path / "provenance.md").read_text()
    assert "Diffusion model" not in text
    assert "0.00 hours" in text


def test_data_sets_stand_there_with_their_counts_and_checksums(tmp_path: Path) -> None:
    meta = {"dataset": "digits", "classes": list("0123"), "counts": {"train": 12, "test": 8}, "image_size": 16}
    meta |= {"source": {"kind": "tar", "file": "digits.tar"}}
    meta["sha256"] = {f"{kind}_{part}.npy": f"{kind[0]}{part}" + "0" * 60 for kind in ("images", "labels")
                      for part in ("train", "test")}  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    provenance.run([tmp_path / "meta.json"], [], tmp_path / "provenance.md")
    found = small_results.rows((tmp_path / "provenance.md").read_text())
    assert found["digits",] == ["4", "12", "8", "16", "tar digits.tar", "itrain000000, itest0000000"]


def test_a_published_data_set_names_all_its_archives(tmp_path: Path) -> None:
    meta = {"dataset": "Cars", "classes": ["a"], "counts": {"train": 1, "test": 1}, "image_size": 16}
    meta |= {"source": {"kind": "torchvision", "archives": ["a.tgz", "b.tgz"]}}
    meta["sha256"] = {"images_train.npy": "0" * 64, "images_test.npy": "1" * 64}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    provenance.run([tmp_path / "meta.json"], [], tmp_path / "provenance.md")
    assert "torchvision a.tgz, b.tgz" in (tmp_path / "provenance.md").read_text()


def test_hours_add_up_records_of_different_speed() -> None:
    """10 steps of 360 images at 100 a second, then 30 at 600."""
    history = pd.DataFrame({"step": [10, 40], "images_per_second": [100.0, 600.0]})
    assert provenance.hours(history, 360) == pytest.approx((36 + 18) / 3600)
