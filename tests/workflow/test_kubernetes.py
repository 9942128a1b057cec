"""profiles/kubernetes: planned with the real plugins where they are installed; what they ask of rules, everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
import yte

from tests.dvc.clones import Clone, working_tree

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return working_tree(tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_rules_can_exchange_their_files_through_a_storage(path: Path) -> None:
    """Where one is the default, another rule's output carries a flag, which expand refuses; a file of the checkout is
    in no storage; and a command's folders are those of its inputs and outputs, wherever they were brought to."""
    text = path.read_text()
    assert re.findall(r"expand\(\s*rules\.", text) == []
    assert re.findall(r"(?<!local\()str\(HERE / f?\"", text) == []
    words = re.findall(r"--(\w+) results/", text)
    assert set(words) <= {"checkpoint", "events"}


def test_the_profile_plans_every_job_of_the_tables_through_a_storage(clone: Clone, tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_kubernetes", reason="pip install 'diffsiam[kubernetes]'")
    pytest.importorskip("snakemake_storage_plugin_fs", reason="pip install snakemake-storage-plugin-fs")
    clone.replace("profiles/kubernetes/config.yaml", "storage: s3", "storage: fs")
    clone.replace("profiles/kubernetes/config.yaml", "s3://bucket/diffsiam", str(tmp_path))
    assert clone.planned("--workflow-profile", "profiles/kubernetes", "all", "figures") == clone.planned(
        "all", "figures"
    )


def test_the_profile_asks_for_gpus_where_networks_are_trained_or_draw() -> None:
    profile = yte.process_yaml((ROOT / "profiles" / "kubernetes" / "config.yaml").read_text())
    asked = {rule: resources["gpu"] for rule, resources in profile["set-resources"].items()}
    methods = yaml.safe_load((ROOT / "workflow/presets/thesis.yaml").read_text())["methods"]
    assert {f"representation_{method}" for method in methods if method != "untrained"} | {"diffusion"} <= set(asked)
    assert set(asked.values()) == {1}
    assert profile["default-resources"] == {"gpu_manufacturer": "nvidia", "scale": 0}
    assert profile["max-checksum-file-size"] == "50GB"
