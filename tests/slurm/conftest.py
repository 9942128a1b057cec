"""One cluster; one project, run without it and, with everything going wrong that can, on it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.dvc.clones import Clone, working_tree
from tests.slurm.cluster import Cluster, cluster, missing
from tests.slurm.project import copy, jobs, settings, started


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The repository without results; its one training takes long enough to be disturbed, and saves its state often."""
    clone = working_tree(tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("scratch"))
    settings(clone, representation={"steps": 400}, runtime={"checkpoint_minutes": 0.02})
    clone.commit()
    return clone


@pytest.fixture(scope="session")
def local(fresh: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """After a run on this machine that nothing disturbed."""
    clone = copy(fresh, tmp_path_factory.mktemp("local") / "repo")
    clone.run("snakemake", "--cores", "2", "tables")
    return clone


@pytest.fixture(scope="session")
def disturbed(slurm: Cluster, fresh: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """After one run on the cluster. While it trained, the controller was restarted, the job's node went down and came
    back, and the job was cancelled; nobody gave a second command."""
    clone = copy(fresh, tmp_path_factory.mktemp("disturbed") / "repo")
    with started(slurm, clone, "tables") as run:
        run.wait_for_training()
        slurm.stop("slurmctld")
        slurm.start_controller()
        slurm.wait()

        job = jobs(slurm, clone, "rule_representation")[-1]
        run.wait_for_training()
        slurm.ask("scontrol", "update", f"NodeName={job['NodeList']}", "State=down", "Reason=test")
        run.wait_for("another start", lambda: restarted(jobs(slurm, clone, "rule_representation")[-1]))
        run.wait_for("the node's return", lambda: returned(slurm, job["NodeList"]))

        run.wait_for_training()
        slurm.ask("scancel", jobs(slurm, clone, "rule_representation")[-1]["JobId"])
        assert run.process.wait(900) == 0, run.log()
    return clone


def returned(slurm: Cluster, node: str) -> bool:
    """Whether the node takes jobs again; asks for it, which SLURM refuses while it still ends the node's old jobs."""
    with contextlib.suppress(subprocess.CalledProcessError):
        slurm.ask("scontrol", "update", f"NodeName={node}", "State=resume")
    return slurm.ask("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%t").strip() in (
        "idle",
        "mix",
        "alloc",
    )


def restarted(job: dict[str, str]) -> bool:
    """Whether SLURM put the job back into the queue, and started it again."""
    return (job["Restarts"], job["JobState"]) == ("1", "RUNNING")
