"""What DVC is shown: few metrics by name, and curves with a row per method and point."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "workflow" / "scripts" / "metrics.py"


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """Two data sets, an untrained and a trained method, of which the latter has two seeds."""
    runs = [("untrained", 0, 20), ("simsiam", 0, 30), ("simsiam", 1, 34)]
    files: dict[str, list[Path]] = {"linear": [], "fewshot": [], "history": []}
    for method, seed, accuracy in runs:
        folder = tmp_path / "representation" / method / f"seed{seed}"
        folder.mkdir(parents=True)
        files["history"].append(folder / "history.csv")
        rows = [] if method == "untrained" else [f"{step},{seed + step / 10}" for step in (1, 2)]
        files["history"][-1].write_text("\n".join(["step,loss", *rows, ""]))
        for dataset, more in (("digits", 0), ("photos", 10)):
            own = {"method": method, "seed": seed, "dataset": dataset}
            choices = [{"l2": l2, "accuracy": accuracy + more + best} for l2, best in ((10.0, 3), (0.01, 1))]
            probe = own | {"accuracy": accuracy + more, "validation": choices}
            shots = {n: {"accuracy": accuracy + more + int(n)} for n in ("1", "5")}
            for protocol, result in (("linear", probe), ("fewshot", own | {"shots": shots})):
                files[protocol].append(tmp_path / f"{protocol}-{method}-{seed}-{dataset}.json")
                files[protocol][-1].write_text(json.dumps(result))
    options = [word for name, paths in files.items() for word in (f"--{name}", *paths)]
    for name, suffix in (("metrics", "json"), ("accuracy", "csv"), ("loss", "csv"), ("validation", "csv")):
        options += [f"--{name}", tmp_path / f"{name}.{suffix}"]
    subprocess.run([sys.executable, SCRIPT, *options], check=True)
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def test_metrics_are_one_mean_for_each_protocol_and_method(shown: Path) -> None:
    assert json.loads((shown / "metrics.json").read_text()) == {
        "validation": {"untrained": 28, "simsiam": 40},
        "linear": {"untrained": 25, "simsiam": 37},
        "1-shot": {"untrained": 26, "simsiam": 38},
        "5-shot": {"untrained": 30, "simsiam": 42},
    }


def test_the_loss_is_of_trained_methods_alone(shown: Path) -> None:
    found = [(row["method"], int(row["step"]), float(row["loss"])) for row in rows(shown / "loss.csv")]
    assert found == [("simsiam", 1, pytest.approx(0.6)), ("simsiam", 2, pytest.approx(0.7))]


def test_validation_and_accuracies_have_a_row_for_each_method_and_point(shown: Path) -> None:
    found = {(row["method"], float(row["log10_l2"])): float(row["accuracy"]) for row in rows(shown / "validation.csv")}
    assert found == {("untrained", -2): 26, ("untrained", 1): 28, ("simsiam", -2): 38, ("simsiam", 1): 40}
    assert list(found) == [(method, penalty) for method in ("untrained", "simsiam") for penalty in (-2, 1)]
    found = {(row["dataset"], row["method"]): float(row["accuracy"]) for row in rows(shown / "accuracy.csv")}
    assert found[("digits", "untrained")] == 20
    assert found[("photos", "simsiam")] == 42
    assert len(found) == 4
