"""What a user reads when the cluster cannot run the jobs: one message, before anything is planned."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.dvc.clones import Clone
from tests.slurm.cluster import Cluster
from tests.slurm.project import copy, jobs, on_cluster

pytestmark = pytest.mark.slow


def message(slurm: Cluster, clone: Clone) -> str:
    done = clone.run(*on_cluster(slurm, "tables"), check=False)
    assert done.returncode == 2
    assert jobs(slurm, clone) == []
    said = [line for line in done.stderr.splitlines() if not line.startswith("Using ")]
    assert len(said) == 2, done.stderr
    return said[0]


def test_no_slurm_at_all(fresh: Clone, tmp_path: Path) -> None:
    for name in ("bash", "which"):  # what Snakemake and its plugin cannot start without
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    path = f"{Path(sys.executable).parent}:{tmp_path}"
    command = ("snakemake", "--workflow-profile", "profiles/slurm", "tables")
    done = fresh.run(*command, check=False, PATH=path, PYTHONPATH=str(fresh.root))
    assert done.returncode == 2
    assert "there is no sbatch on this machine" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "named", "reason"),
    [
        ('account: ""', "account: refused", "account: 'refused'", "Invalid account"),
        ('  partition: ""', "  partition: nope", "partition: 'nope'", "Invalid partition name"),
        ('constraint: ""', "constraint: nope", "constraint: 'nope'", "Invalid feature specification"),
        ('gpu_type: ""', "gpu_type: nope", "--gpus=nope:1", "Requested node configuration is not available"),
        ("gpus: 1", "gpus: 50", "--gpus=50", "Requested node configuration is not available"),
        ("training_minutes: 1440", "training_minutes: 20000", "--time=20000", "its longest time limit is 10080 min"),
    ],
)
def test_what_the_cluster_refuses_is_named_with_the_reason(
    slurm: Cluster, fresh: Clone, tmp_path: Path, old: str, new: str, named: str, reason: str
) -> None:
    clone = copy(fresh, tmp_path / "repo")
    clone.replace("profiles/slurm/config.yaml", old, new)
    said = message(slurm, clone)
    assert said.startswith("profiles/slurm/config.yaml: the cluster refuses jobs with ")
    assert named in said
    assert reason in said


def test_no_partition_set_and_none_by_default(slurm: Cluster, fresh: Clone, tmp_path: Path) -> None:
    clone = copy(fresh, tmp_path / "repo")
    slurm.ask("scontrol", "update", "PartitionName=main", "Default=NO")
    try:
        said = message(slurm, clone)
    finally:
        slurm.ask("scontrol", "update", "PartitionName=main", "Default=YES")
    assert "partition: ''" in said
    assert "No partition specified or system default partition" in said
