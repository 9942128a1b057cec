"""Records against the files that they speak of; files that a command given by hand left are known as such."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from diffsiam import cli, params, records, runtime
from diffsiam.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Snakefile and the demo's parameters."""
    (tmp_path / "Snakefile").touch()
    shutil.copy(ROOT / "workflow" / "presets" / "demo.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(params.VARIABLE, raising=False)
    return tmp_path


TABLE = "results/table.csv"


@pytest.fixture
def table(project: Path) -> Path:
    """A result with the record that Snakemake writes at the end of its job."""
    path = project / TABLE
    path.parent.mkdir()
    path.write_text("one")
    record(endtime=path.stat().st_mtime)
    return path


def kept_at(kind: str) -> Path:
    """Where Snakemake keeps what it knows of the table."""
    path = Path(".snakemake", kind, base64.urlsafe_b64encode(TABLE.encode()).decode())
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def record(**facts: Any) -> None:
    keys = ("rule", "code", "params", "input", "input_checksums", "log", "software_stack_hash", "job_hash")
    whole = dict.fromkeys(keys) | {"record_format_version": 6, "starttime": 1.0} | facts
    kept_at("metadata").write_text(json.dumps(whole))


def test_a_sealed_record_holds_a_file_to_its_bytes_and_not_to_its_time(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.check([[TABLE]], 6)
    records.seal([[TABLE]])
    assert json.loads(kept_at("metadata").read_text())["sha256"] == runtime.sha256(table)
    os.utime(table, (1000, 1000))
    records.check([[TABLE]], 6)
    monkeypatch.setenv(records.RESTORE, "1")  # which takes over files without records, and no others
    table.write_text("two")
    with pytest.raises(UserError, match=r"Not what the record says.*: results/table\.csv"):
        records.check([[TABLE]], 6)
    table.write_text("one")
    os.utime(table, (1000, 1000))
    records.check([[TABLE]], 6)
    Path("other").write_text("two")  # as long, as old, and moved to its place
    os.utime("other", (1000, 1000))
    os.replace("other", table)
    with pytest.raises(UserError, match="Not what the record says"):
        records.check([[TABLE]], 6)


def test_a_file_that_changed_after_its_job_is_not_sealed_and_its_record_is_not_believed(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(table, (1000, 1000))
    records.seal([[TABLE]])
    assert "sha256" not in json.loads(kept_at("metadata").read_text())
    with pytest.raises(UserError, match=r"No record .*: results/table\.csv"):
        records.check([[TABLE]], 6)
    monkeypatch.setenv(records.RESTORE, "1")
    records.check([[TABLE]], 6)


def test_records_of_another_format_are_not_believed_and_a_snakemake_that_writes_them_is_refused(table: Path) -> None:
    with pytest.raises(UserError, match="writes records of format 7; 6 is the tested one"):
        records.check([], 7)
    record(endtime=table.stat().st_mtime, record_format_version=5)
    with pytest.raises(UserError, match="No record"):
        records.check([[TABLE]], 6)


def test_a_file_that_a_job_is_at_work_on_is_left_to_snakemake(table: Path) -> None:
    kept_at("incomplete").touch()
    records.seal([[TABLE]])
    assert "sha256" not in json.loads(kept_at("metadata").read_text())
    kept_at("metadata").unlink()
    records.check([[TABLE]], 6)


@pytest.mark.parametrize(("job", "removed"), [(None, True), ("17", False)])
def test_locks_of_a_dead_run_go_unless_its_jobs_may_live_on_a_cluster(
    job: str | None, removed: bool, project: Path
) -> None:
    lock = project / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    kept_at("incomplete").write_text(json.dumps({"external_jobid": job}))
    records.clear_dead_locks()
    assert lock.exists() != removed


def test_locks_of_a_run_that_lives_stay(project: Path) -> None:
    records.clear_dead_locks()  # that run
    lock = project / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir()
    lock.touch()
    records.clear_dead_locks()
    assert lock.exists()


def test_a_file_that_no_command_made_is_refused_as_before(project: Path) -> None:
    path = project / "results" / "data" / "digits" / "meta.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"No record of the params and code that made them: results/data/digits/meta"):
        records.check([["results/data/digits/meta.json"]], records.FORMAT)


def test_only_what_the_command_wrote_is_recorded_as_made_by_it(project: Path) -> None:
    results = project / "results"
    results.mkdir()
    for name in ("old.csv", "table.csv", "table.md"):
        (results / name).write_text(name)
    hour_ago = time.time() - 3600
    os.utime(results / "old.csv", (hour_ago, hour_ago))
    records.by_hand("diffsiam table", Path("results/table.csv"), time.time())
    records.check([["results/table.csv", "results/table.md"]], records.FORMAT)
    with pytest.raises(UserError, match=r"results/old\.csv"):
        records.check([["results/old.csv"]], records.FORMAT)
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


def test_only_commands_that_rules_give_too_are_recorded() -> None:
    stages = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    ruled = {name for name, stage in stages.items() if stage.get_default("ruled")}
    given = re.findall(r'"(?:trap \S+ TERM; )?diffsiam ([a-z]+) ', "".join(map(Path.read_text, RULES)))
    assert ruled == set(given)
    assert {"evaluate", "counterfactual", "manipulate", "restore", "samples", "publish", "fetch", "crate"} == set(
        stages
    ) - ruled


def test_nothing_is_recorded_of_a_rules_own_job(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(params.VARIABLE, json.dumps({"data": {"root": "resources"}}))
    assert cli.main(["data", "digits", "--out", "results/data/digits"]) == 0
    assert not (project / ".snakemake").exists()
