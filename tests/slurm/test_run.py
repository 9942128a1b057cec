"""A whole run through profiles/slurm on a real cluster, against the same run on one machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.dvc.clones import Clone
from tests.slurm.cluster import Cluster
from tests.slurm.project import jobs

pytestmark = pytest.mark.slow


def test_tables_and_weights_equal_those_of_an_undisturbed_local_run(disturbed: Clone, local: Clone) -> None:
    made = sorted(path.relative_to(local.root) for path in (local.root / "results").rglob("*") if path.is_file())
    # these two tell of the machines and hours, which differ
    told = {"provenance.md", "index.html"}
    tables = [path for path in made if path.parent.name == "results" and path.name not in told]
    weights = [path for path in made if path.suffix == ".safetensors"]
    assert len(tables) == 10
    assert len(weights) == 5
    for path in tables + weights:
        assert (disturbed.root / path).read_bytes() == (local.root / path).read_bytes(), path


def test_training_went_on_from_its_checkpoint_after_every_disturbance(disturbed: Clone) -> None:
    logs = sorted((disturbed.root / "results/logs/slurm/rule_representation_diffsiam_hier/sprites_0").glob("*.log"))
    assert len(logs) == 2  # a job that SLURM moves to another node keeps its number, and its log
    assert all("resuming from" in log.read_text() for log in logs)


def test_one_submission_for_each_training_and_one_for_all_evaluations_of_an_encoder(
    disturbed: Clone, slurm: Cluster
) -> None:
    assert [(job["Comment"].split("_wildcards")[0], job["JobState"]) for job in jobs(slurm, disturbed)] == [
        ("rule_diffusion", "COMPLETED"),
        ("rule_representation_diffsiam_hier", "CANCELLED"),
        ("rule_representation_diffsiam_hier", "COMPLETED"),
        ("rule_evaluation_sprites_diffsiam_hier_0_features_fewshot_linear", "COMPLETED"),
    ]


def test_cluster_grants_what_rules_and_profile_ask_and_more_on_the_second_attempt(
    disturbed: Clone, slurm: Cluster
) -> None:
    _, first, second, evaluation = jobs(slurm, disturbed)
    asked = ("TresPerJob", "NumNodes", "MinMemoryNode", "TimeLimit")
    assert [first[key] for key in asked] == ["gres:gpu:1", "1", "8000M", "1-00:00:00"]
    assert [second[key] for key in asked] == ["gres:gpu:1", "1", "16000M", "1-00:00:00"]
    assert "TresPerJob" not in evaluation
    assert [evaluation[key] for key in ("NumCPUs", "MinMemoryNode", "TimeLimit")] == ["2", "8000M", "02:00:00"]


def test_nothing_is_left_to_do_afterwards_on_the_cluster_or_without(disturbed: Clone) -> None:
    assert disturbed.planned("tables") == {}
    assert disturbed.planned("--workflow-profile", "profiles/slurm", "tables") == {}


def test_jobs_had_no_network(disturbed: Clone, slurm: Cluster) -> None:
    if not slurm.isolated:
        pytest.skip("the kernel gives us no network namespace here")
    connect = "import socket; socket.create_connection(('1.1.1.1', 443), 5)"
    done = subprocess.run([*slurm.inside, "srun", sys.executable, "-c", connect], capture_output=True, text=True)
    assert "Network is unreachable" in done.stderr
