"""A command that is given by hand writes among the results, and Snakemake goes on."""

from __future__ import annotations

from pathlib import Path

from diffsiam import cli
from tests.workflow.plans import snakemake


def test_a_plan_is_not_refused_for_a_file_made_by_hand_and_makes_it_anew_where_it_is_needed(project: Path) -> None:
    assert cli.main(["data", "digits", "--out", "results/data/digits"]) == 0
    done = snakemake("-n", "results/data/digits/meta.json")
    assert done.returncode == 0, done.stderr
    assert "Code has changed since last execution" in done.stdout + done.stderr
    assert "rule data:" in done.stdout + done.stderr
    assert snakemake("--cores", "1", "results/data/digits/meta.json").returncode == 0
    done = snakemake("-n", "results/data/digits/meta.json")
    assert "Nothing to be done" in done.stdout + done.stderr
