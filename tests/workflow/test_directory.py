"""The pipeline is one wherever its command is given: `--directory`, and `-s` from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dvc.clones import Clone, working_tree
from tests.workflow.test_edits import finish

TARGETS = ("all", "figures")
RULES = Path(__file__).resolve().parents[2] / "workflow" / "rules"
SHELL = re.compile(r"shell:\n((?:\s+(?:#.*|\".*\"))+)")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return working_tree(tmp_path_factory.mktemp("a checkout"), tmp_path_factory.mktemp("scratch"))


def test_snakefile_named_from_elsewhere_plans_the_same_there_with_its_own_or_that_places_parameters(
    clone: Clone, tmp_path: Path
) -> None:
    there = Clone(tmp_path, clone.env)
    snakefile = ("--snakefile", str(clone.root / "Snakefile"))
    everything = clone.planned(*TARGETS)
    assert everything["fewshot"] == 1
    assert there.planned(*snakefile, *TARGETS) == everything
    assert clone.planned("--directory", str(tmp_path), *TARGETS) == everything
    assert there.planned(*snakefile, "--directory", str(clone.root), *TARGETS) == everything
    (tmp_path / "params.yaml").write_text((clone.root / "params.yaml").read_text())
    there.edit("transfer", ["digits", "photos"])
    assert there.planned(*snakefile, *TARGETS)["fewshot"] == 2


@pytest.mark.slow
def test_what_was_made_elsewhere_is_up_to_date_from_both_places_and_edits_are_seen(
    clone: Clone, tmp_path: Path
) -> None:
    there = Clone(tmp_path, clone.env)
    (tmp_path / "params.yaml").write_text((clone.root / "params.yaml").read_text())
    snakefile = ("--snakefile", str(clone.root / "Snakefile"))
    finish(clone, *TARGETS, there=there)
    assert there.planned(*snakefile, *TARGETS) == {}
    assert clone.planned("--directory", str(there.root), *TARGETS) == {}
    there.edit("fewshot.episodes", 21)
    assert set(there.planned(*snakefile, *TARGETS)) == {"fewshot", "table4_2", "summary", "page", "metrics"}
    assert not (clone.root / "results/features").exists()


@pytest.mark.slow
def test_commands_run_in_the_place_and_read_the_checkout(clone: Clone, tmp_path: Path) -> None:
    target = "results/data/digits/meta.json"
    clone.run("snakemake", "--directory", str(tmp_path), "--cores", "1", target)
    assert (tmp_path / target).exists()
    assert not (clone.root / "results/data").exists()


def test_every_command_of_a_rule_is_given_its_parameters() -> None:
    """Without --params a command reads params.yaml of where it runs, and there may be none."""
    lines = [shell for file in sorted(RULES.glob("*.smk")) for shell in re.findall(SHELL, file.read_text())]
    commands = [shell for shell in lines if re.search(r"\bdiffsiam \w", shell)]
    assert len(commands) > 25
    assert [shell for shell in commands if "--params" not in shell] == []
