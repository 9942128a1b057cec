"""Files that a command given by hand left among the results: known as such, and made anew where a run needs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffsiam import cli, params, records
from diffsiam.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("Snakefile", "workflow", "diffsiam", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "workflow" / "presets" / "demo.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(params.VARIABLE, raising=False)
    return tmp_path


def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_plan_is_not_refused_for_a_file_made_by_hand_and_makes_it_anew_where_it_is_needed(project: Path) -> None:
    assert cli.main(["data", "digits", "--out", "results/data/digits"]) == 0
    done = snakemake("-n", "results/data/digits/meta.json")
    assert done.returncode == 0, done.stderr
    assert "Code has changed since last execution" in done.stdout + done.stderr
    assert "rule data:" in done.stdout + done.stderr
    assert snakemake("--cores", "1", "results/data/digits/meta.json").returncode == 0
    done = snakemake("-n", "results/data/digits/meta.json")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_file_that_no_command_made_is_refused_as_before(project: Path) -> None:
    path = project / "results" / "data" / "digits" / "meta.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"No record of the params and code that made them: results/data/digits/meta"):
        records.check(["results/data/digits/meta.json"], records.FORMAT)


def test_only_what_the_command_wrote_is_recorded_as_made_by_it(project: Path) -> None:
    results = project / "results"
    results.mkdir()
    for name in ("old.csv", "table.csv", "table.md"):
        (results / name).write_text(name)
    hour_ago = time.time() - 3600
    os.utime(results / "old.csv", (hour_ago, hour_ago))
    records.by_hand("diffsiam table", Path("results/table.csv"), time.time())
    records.check(["results/table.csv", "results/table.md"], records.FORMAT)
    with pytest.raises(UserError, match=r"results/old\.csv"):
        records.check(["results/old.csv"], records.FORMAT)
    (record,) = [r for r in map(json.loads, texts(project)) if r["endtime"] == (results / "table.md").stat().st_mtime][
        :1
    ]
    assert record["code"] == "diffsiam table"


def texts(project: Path) -> list[str]:
    return [path.read_text() for path in (project / ".snakemake" / "metadata").rglob("*") if path.is_file()]


@pytest.mark.parametrize("out", ["elsewhere/x.csv", "../results/x.csv"])
def test_nothing_is_recorded_of_a_file_outside_the_results(out: str, project: Path) -> None:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text("x")
    records.by_hand("diffsiam x", Path(out), time.time())
    assert not (project / ".snakemake").exists()


def test_nothing_is_recorded_of_a_rules_own_job(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(params.VARIABLE, json.dumps({"data": {"root": "resources"}}))
    assert cli.main(["data", "digits", "--out", "results/data/digits"]) == 0
    assert not (project / ".snakemake").exists()
