"""Pull and go: a clone with the outputs and the records is up to date for both tools, and stays able to see edits."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.dvc.clones import Clone, ran

RESTORE = ("make", "--old-file=.venv/.ready", "restore")  # in this environment, not one of its own


def assert_up_to_date(clone: Clone) -> None:
    assert clone.changed() == {}
    assert clone.planned("all", "attributes_tables") == {}


def episodes(clone: Clone) -> set[str]:
    with open(clone.root / "results/table4_2.csv", newline="") as f:
        return {row["episodes"] for row in csv.DictReader(f)}


@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_after_a_pull_nothing_runs_and_an_edit_runs_exactly_what_it_touches(
    finished: Clone, tmp_path: Path, link: str
) -> None:
    clone = finished.clone(tmp_path / "repo", cache=tmp_path / "cache", link=link)
    clone.dvc("pull")
    images = clone.root / "results/data/sprites/images_train.npy"
    assert images.is_symlink() == (link == "symlink")
    assert (images.stat().st_nlink > 1) == (link == "hardlink")
    assert clone.changed() == {}
    assert clone.planned("results/table4_2.csv") == {}

    clone.edit("fewshot.episodes", 21)
    assert ran(clone.dvc("repro")) == ["fewshot@diffsiam_hier", "tables"]
    assert episodes(clone) == {"21"}

    clone.git("checkout", "--quiet", "-b", "other")
    clone.commit()
    for branch, expected in (("main", "20"), ("other", "21")):
        clone.git("checkout", "--quiet", branch)
        clone.dvc("checkout")
        assert episodes(clone) == {expected}
        assert_up_to_date(clone)


def test_without_records_a_run_says_so_and_restore_settles_it(pulled: Clone) -> None:
    before = pulled.records()
    shutil.rmtree(pulled.root / ".snakemake")
    for command in (["snakemake", "-n"], ["snakemake", "--cores", "1"], ["dvc", "repro", "--force", "linear"]):
        said = pulled.run(*command, check=False)
        assert said.returncode != 0
        assert "No record of the params and code that made them: results/data/digits/" in said.stderr
        assert "`make restore`" in said.stderr

    pulled.run(*RESTORE)
    assert_up_to_date(pulled)
    times = ("starttime", "endtime")
    assert pulled.records().keys() == before.keys()
    for name, record in pulled.records().items():
        assert {k: v for k, v in record.items() if k not in times} == {
            k: v for k, v in before[name].items() if k not in times
        }
    pulled.edit("fewshot.episodes", 21)
    assert set(pulled.planned("tables")) == {"fewshot", "table4_2", "summary", "page"}


def test_restore_refuses_after_an_edit_of_params_and_after_half_a_pull(pulled: Clone) -> None:
    shutil.rmtree(pulled.root / ".snakemake/metadata")
    pulled.edit("fewshot.episodes", 21)
    said = pulled.run(*RESTORE, check=False)
    assert said.returncode == 2
    assert "restore: refused" in said.stderr
    assert "fewshot.episodes" in said.stderr
    assert not (pulled.root / ".snakemake/metadata").exists()

    pulled.edit("fewshot.episodes", 20)
    shutil.rmtree(pulled.root / "results/features")
    said = pulled.run(*RESTORE, check=False)
    assert said.returncode == 2
    assert "results/features/sprites/diffsiam_hier" in said.stderr


def test_a_snakemake_that_writes_records_of_another_format_is_refused(pulled: Clone) -> None:
    pulled.replace("diffsiam/records.py", "\nFORMAT = 6", "\nFORMAT = 5")
    said = pulled.run("snakemake", "-n", check=False)
    assert said.returncode == 2
    assert "This Snakemake writes records of format 6; 5 is the tested one" in said.stderr
    assert "pip install -r requirements.lock" in said.stderr


def test_inputs_above_a_megabyte_are_recorded_with_their_checksums(finished: Clone) -> None:
    images = "results/data/sprites/images_train.npy"
    data = (finished.root / images).read_bytes()
    assert len(data) > 1e6
    record = next(r for r in finished.records().values() if r["rule"] == "representation_diffsiam_hier")
    assert record["input_checksums"][images] == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_record_of_another_format_is_not_trusted(pulled: Clone) -> None:
    name = base64.urlsafe_b64encode(b"results/table4_2.csv").decode()  # Snakemake's name for this file's record
    path = pulled.root / ".snakemake/metadata" / name
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"record_format_version": 5}))
    said = pulled.run("snakemake", "-n", check=False)
    assert said.returncode == 2
    assert "No record of the params and code that made them: results/table4_2.csv" in said.stderr


def test_dvc_and_plain_snakemake_make_the_same_tables_byte_for_byte(
    fresh: Clone, finished: Clone, tmp_path: Path
) -> None:
    clone = fresh.clone(tmp_path / "repo")
    clone.run("snakemake", "--cores", "all", "all", "attributes_tables")
    names = {path.name for path in (finished.root / "results").glob("table4_*")}
    assert names == {f"table4_{n}.{suffix}" for n in (1, 2) for suffix in ("csv", "md", "tex")}
    for name in [*names, "summary.md", "paired.csv", "metrics.json", "plots/loss.csv"]:
        assert (clone.root / "results" / name).read_bytes() == (finished.root / "results" / name).read_bytes(), name
    assert clone.records().keys() == finished.records().keys()
