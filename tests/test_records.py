"""Files that a command given by hand left among the results: known as such, and made anew where a run needs them."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from diffsiam import cli, params, records
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


def test_only_commands_that_rules_give_too_are_recorded() -> None:
    stages = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    ruled = {name for name, stage in stages.items() if stage.get_default("ruled")}
    given = re.findall(r'"(?:trap \S+ TERM; )?diffsiam ([a-z]+) ', "".join(map(Path.read_text, RULES)))
    assert ruled == set(given)
    assert {"evaluate", "counterfactual", "manipulate"} == set(stages) - ruled


def test_nothing_is_recorded_of_a_rules_own_job(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(params.VARIABLE, json.dumps({"data": {"root": "resources"}}))
    assert cli.main(["data", "digits", "--out", "results/data/digits"]) == 0
    assert not (project / ".snakemake").exists()
