"""What the tests do with a project on the cluster: type a command, look at its jobs, wait for something to happen."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.dvc.clones import Clone, merged
from tests.slurm.cluster import Cluster

# A test cannot wait as long as a cluster's users do.
QUICK = {"seconds-between-status-checks": "1", "slurm-init-seconds-before-status-checks": "1", "latency-wait": "5"}
CHECKPOINT = "results/checkpoints/representation/sprites/diffsiam_hier/seed0.pt"  # saved while it trains


def on_cluster(slurm: Cluster, *arguments: str) -> list[str]:
    """The command line of a run through profiles/slurm."""
    quick = [word for option, seconds in QUICK.items() for word in (f"--{option}", seconds)]
    return [*slurm.inside, "snakemake", "--workflow-profile", "profiles/slurm", *quick, *arguments]


def hurry(clone: Clone) -> None:
    """`QUICK` in the profile, for commands that DVC types."""
    path = clone.root / "profiles/slurm/config.yaml"
    lines = [line for line in path.read_text().splitlines() if line.partition(":")[0] not in QUICK]
    path.write_text("\n".join([*lines, *(f"{option}: {seconds}" for option, seconds in QUICK.items()), ""]))


def settings(clone: Clone, **sections: object) -> None:
    """Merge sections into params.yaml."""
    path = clone.root / "params.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), sections), sort_keys=False))


def copy(clone: Clone, to: Path) -> Clone:
    """A project with all its results; what is done to it does not touch the other."""
    shutil.copytree(clone.root, to, symlinks=True)
    return Clone(to, clone.env | {"PYTHONPATH": str(to)})


def jobs(slurm: Cluster, clone: Clone, rule: str = "") -> list[dict[str, str]]:
    """The cluster's own record of every job that this project submitted, oldest first."""
    lines = slurm.ask("scontrol", "--oneliner", "show", "job").splitlines()
    found = [{key: value for key, _, value in (word.partition("=") for word in line.split())} for line in lines]
    mine = [job for job in found if job.get("WorkDir") == str(clone.root) and rule in job.get("Comment", "")]
    return sorted(mine, key=lambda job: int(job["JobId"]))


@dataclass(frozen=True)
class Run:
    """A command under way in a project."""

    clone: Clone
    process: subprocess.Popen[bytes]

    def wait_for(self, what: str, condition: Callable[[], bool], timeout: float = 900) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"over before: {what}\n{self.log()}"
            assert time.monotonic() < end, f"{timeout} s without: {what}\n{self.log()}"
            time.sleep(0.2)

    def wait_for_training(self) -> None:
        """Until the training saves its state once more."""
        since = time.time()
        checkpoint = self.clone.root / CHECKPOINT
        self.wait_for("a new checkpoint", lambda: checkpoint.exists() and checkpoint.stat().st_mtime > since)

    def log(self) -> str:
        return (self.clone.root / "run.log").read_text()


@contextlib.contextmanager
def started(slurm: Cluster, clone: Clone, *arguments: str) -> Iterator[Run]:
    """A run through profiles/slurm that goes on beside the test."""
    with open(clone.root / "run.log", "w") as log:
        command = on_cluster(slurm, *arguments)
        process = subprocess.Popen(command, cwd=clone.root, env=clone.env, stdout=log, stderr=log)
    try:
        yield Run(clone, process)
    finally:
        process.kill()
        process.wait()
