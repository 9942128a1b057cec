"""After an edit, DVC and Snakemake name the same levels: those behind the edit, and none before it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.dvc.clones import Clone, closure, level, ran

ORDER = ["data", "diffusion", "representation", "features", "linear", "fewshot", "heads", "tables"]
AFTER_FEATURES = {"features", "linear", "fewshot", "tables"}
AFTER_TRAINING = AFTER_FEATURES | {"heads"}
EDITS = [  # leaf, its new value, levels behind it
    ("pretrain", "photos", set(ORDER)),
    ("data.split_seed", 1, set(ORDER)),
    ("diffusion.learning_rate", 0.001, set(ORDER) - {"data"}),
    ("diffusion.unet.dropout", 0.2, set(ORDER) - {"data"}),
    ("representation.diffusion_weight", 50.0, AFTER_TRAINING | {"representation"}),
    ("features.batch_size", 64, AFTER_TRAINING),
    ("linear.penalties", 4, {"linear", "tables"}),
    ("fewshot.episodes", 21, {"fewshot", "tables"}),
    ("heads.epochs", 2, {"heads"}),
    ("runtime.precision", "fp32", set(ORDER) - {"data"}),
    ("runtime.checkpoint_minutes", 1, set()),
    ("data.root", "elsewhere", set()),
    ("seeds", [0, 1], AFTER_TRAINING | {"representation"}),
    ("methods", ["simsiam", "diffsiam_hier"], AFTER_TRAINING | {"representation"}),
]


@pytest.fixture(scope="module")
def shared(once_pulled: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return once_pulled.copy(tmp_path_factory.mktemp("agreement") / "repo")


@pytest.fixture
def clone(shared: Clone) -> Iterator[Clone]:
    """Only planning happens here: git brings everything back."""
    yield shared
    shared.git("checkout", "--quiet", ".")
    shared.git("clean", "--quiet", "--force", "results/sources")


@pytest.fixture(scope="module")
def edges(shared: Clone) -> list[tuple[str, str]]:
    """``dvc dag`` between levels."""
    lines = [line.split("->") for line in shared.dvc("dag", "--dot").splitlines() if "->" in line]
    names = [[end.strip(' ";').partition("@")[0] for end in line] for line in lines]
    return [(source, to) for source, to in names]


def changed_levels(clone: Clone) -> set[str]:
    """Levels of the stages that ``dvc status`` calls changed."""
    return {name.partition("@")[0] for name in clone.changed()}


def planned_levels(clone: Clone) -> set[str]:
    """Levels with jobs in ``snakemake -n``."""
    return {level(rule) for rule in clone.planned("tables", "metrics", "attributes_tables")}


@pytest.fixture(scope="module")
def edited(once_pulled: Clone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[set[str], set[str]]]:
    """What DVC calls changed and what Snakemake plans after each edit, in a copy for each, as many at once as cores."""
    folder = tmp_path_factory.mktemp("edited")

    def plan(leaf: str, value: Any) -> tuple[set[str], set[str]]:
        clone = once_pulled.copy(folder / leaf)
        clone.edit(leaf, value)
        levels = changed_levels(clone), planned_levels(clone)
        shutil.rmtree(clone.root)  # thirty megabytes each
        return levels

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        plans = {leaf: pool.submit(plan, leaf, value) for leaf, value, _ in EDITS}
        return {leaf: done.result() for leaf, done in plans.items()}


@pytest.mark.parametrize(("leaf", "behind"), [(leaf, behind) for leaf, _, behind in EDITS], ids=[e[0] for e in EDITS])
def test_both_plan_the_levels_behind_an_edited_leaf_and_none_before_it(
    edited: dict[str, tuple[set[str], set[str]]], edges: list[tuple[str, str]], leaf: str, behind: set[str]
) -> None:
    changed, planned = edited[leaf]
    assert closure(changed, edges) == planned == behind


def test_every_section_that_a_stage_reads_is_edited_here(fresh: Clone) -> None:
    stages = yaml.safe_load((fresh.root / "dvc.yaml").read_text())["stages"].values()
    read = {name.split(".")[0] for stage in stages for name in stage.get("do", stage).get("params", [])}
    # Edited below, or without a data set here.
    elsewhere = {"transfer", "overrides", "by_method", "datasets", "disentanglement", "frozen_dm"}
    assert read == {leaf.split(".")[0] for leaf, _, _ in EDITS} | elsewhere


def test_a_new_data_set_is_prepared_and_evaluated_and_trains_nothing(clone: Clone) -> None:
    """Not closed under descendants: the stages of training depend on files that the new data set leaves alone."""
    clone.edit("transfer", ["digits", "photos"])
    assert changed_levels(clone) == planned_levels(clone) == AFTER_FEATURES | {"data"}


def test_where_images_of_ones_own_lie_makes_only_dvc_look(clone: Clone) -> None:
    """DVC hashes the whole section; Snakemake's fingerprints know that nothing there is another."""
    clone.edit("datasets", {"birds": {"path": "elsewhere"}})
    assert set(clone.changed()) == {"data"}
    assert planned_levels(clone) == set()


def test_settings_of_a_method_that_is_not_asked_for_make_only_dvc_look(clone: Clone) -> None:
    """DVC has one list of parameters for all methods; Snakemake knows which method reads what."""
    clone.edit("frozen_dm.levels", [10])
    assert set(clone.changed()) == {"representation@diffsiam_hier"}
    assert planned_levels(clone) == set()


def test_an_override_of_the_pretraining_set_trains_again_and_prepares_nothing(
    clone: Clone, edges: list[tuple[str, str]]
) -> None:
    clone.edit("overrides", {"sprites": {"diffusion": {"learning_rate": 0.001}}})
    assert closure(changed_levels(clone), edges) == planned_levels(clone) == set(ORDER) - {"data"}


def test_settings_of_a_methods_own_train_it_again(clone: Clone, edges: list[tuple[str, str]]) -> None:
    clone.edit("by_method", {"diffsiam_hier": {"representation": {"diffusion_weight": 50.0}}})
    assert closure(changed_levels(clone), edges) == planned_levels(clone) == AFTER_TRAINING | {"representation"}


def test_settings_of_another_methods_own_make_only_dvc_look(clone: Clone) -> None:
    clone.edit("by_method", {"pdae": {"representation": {"diffusion_weight": 50.0}}})
    assert set(clone.changed()) == {"representation@diffsiam_hier"}
    assert planned_levels(clone) == set()


def test_an_edited_function_of_the_fewshot_code_plans_fewshot_and_its_tables(
    clone: Clone, edges: list[tuple[str, str]]
) -> None:
    path = clone.root / "diffsiam/evaluation/fewshot.py"
    path.write_text(path.read_text() + "\n\ndef added() -> int:\n    return 1\n")
    assert closure(changed_levels(clone), edges) == planned_levels(clone) == {"fewshot", "tables"}
    assert set(clone.planned("tables")) == {"fewshot", "table4_2", "summary", "page"}


def test_an_edited_rule_is_seen_by_both(clone: Clone, edges: list[tuple[str, str]]) -> None:
    clone.replace("workflow/rules/diffusion.smk", "diffsiam diffusion --data", "time diffsiam diffusion --data")
    assert closure(changed_levels(clone), edges) == planned_levels(clone) == set(ORDER) - {"data"}


def test_after_an_edited_comment_or_docstring_only_dvc_looks_and_nothing_runs(clone: Clone) -> None:
    """DVC hashes files, so its stage's command runs; Snakemake finds nothing to do, and dvc.lock takes the new hash."""
    path = clone.root / "diffsiam/evaluation/fewshot.py"
    path.write_text('"""Another docstring."""\n# And a comment.\n' + path.read_text().split('"""', 2)[2])
    records = clone.records()
    assert set(clone.changed()) == {"fewshot@diffsiam_hier"}
    assert planned_levels(clone) == set()
    said = clone.run("dvc", "repro")
    assert ran(said.stdout) == ["fewshot@diffsiam_hier"]
    assert said.stderr.count("Nothing to be done") == 1
    assert clone.changed() == {}
    assert clone.records() == records
    assert clone.git("status", "--short").split() == ["M", "diffsiam/evaluation/fewshot.py", "M", "dvc.lock"]
