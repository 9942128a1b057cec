"""What happens to a finished project on the cluster: memory, nodes, a killed run, DVC."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.dvc.clones import Clone
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.project import copy, hurry, jobs, on_cluster, settings, started

pytestmark = pytest.mark.slow
LINEAR = "results/linear/sprites/diffsiam_hier/seed0/digits.json"


@pytest.fixture
def project(disturbed: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished project."""
    return copy(disturbed, tmp_path / "repo")


def test_job_above_its_memory_succeeds_on_its_second_attempt(project: Clone, slurm: Cluster) -> None:
    before = (project.root / LINEAR).read_bytes()
    (project.root / LINEAR).unlink()
    # Snakemake itself needs more than the first; everything together less than the second.
    project.run(*on_cluster(slurm, "--set-resources", "linear:mem_mb=100 * attempt**5", "--", LINEAR))
    states = [(job["JobState"] == "COMPLETED", job["MinMemoryNode"]) for job in jobs(slurm, project)]
    assert states == [(False, "100M"), (True, "3200M")]
    assert (project.root / LINEAR).read_bytes() == before


def test_second_call_finishes_what_a_killed_run_left(project: Clone, slurm: Cluster) -> None:
    before = (project.root / LINEAR).read_bytes()
    (project.root / LINEAR).unlink()
    with started(slurm, project, LINEAR) as run:
        run.wait_for("a submission", lambda: bool(jobs(slurm, project)))
        run.wait_for("Snakemake's note of it", lambda: bool(re.search(r'"external_jobid": "\d', notes(project))))
        run.process.kill()
        run.process.wait()
    slurm.ask("scancel", jobs(slurm, project)[-1]["JobId"])
    locked = project.run(*on_cluster(slurm, LINEAR), check=False)
    assert locked.returncode == 1
    assert "--unlock" in locked.stderr
    project.run("snakemake", "--unlock", LINEAR)
    project.run(*on_cluster(slurm, "--rerun-incomplete", LINEAR))
    assert (project.root / LINEAR).read_bytes() == before


def test_a_stop_of_snakemake_alone_cancels_its_training_which_saves_its_state(
    fresh: Clone, slurm: Cluster, tmp_path: Path
) -> None:
    project = copy(fresh, tmp_path / "repo")
    settings(project, representation={"steps": 100_000})
    with started(slurm, project, "representation@diffsiam_hier") as run:
        run.wait_for_training()
        run.process.terminate()
        assert run.process.wait(120) != 0
    job = jobs(slurm, project, "rule_representation")[-1]
    end = time.monotonic() + 60
    while (state := jobs(slurm, project, "rule_representation")[-1]["JobState"]) in ("RUNNING", "COMPLETING"):
        assert time.monotonic() < end, f"{state}\n{run.log()}"
        time.sleep(0.2)
    assert state == "CANCELLED"
    (log,) = (project.root / "results/logs/slurm").rglob(f"{job['JobId']}.log")
    assert "the state is in" in log.read_text()


def test_job_refuses_parameters_that_were_edited_while_it_waited(project: Clone, slurm: Cluster) -> None:
    (project.root / LINEAR).unlink()
    everywhere = ("--exclusive", f"--nodes={len(NODES)}", "--output=/dev/null", "--wrap=sleep 900")
    other = slurm.ask("sbatch", "--parsable", *everywhere).strip()
    try:
        with started(slurm, project, "--retries", "0", "--", LINEAR) as run:
            run.wait_for("a submission", lambda: bool(jobs(slurm, project)))
            project.edit("linear.penalties", 4)
            slurm.ask("scancel", other)
            assert run.process.wait(300) == 1, run.log()
    finally:
        slurm.ask("scancel", other)
    number = jobs(slurm, project)[-1]["JobId"]
    (log,) = (project.root / "results/logs/slurm").rglob(f"{number}.log")
    assert "edited after this run was planned" in log.read_text()
    assert not (project.root / LINEAR).exists()


def notes(project: Clone) -> str:
    """What Snakemake writes down of jobs under way."""
    folder = project.root / ".snakemake/incomplete"
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_training_over_two_nodes(project: Clone, slurm: Cluster) -> None:
    settings(project, representation={"steps": 3})
    project.replace("profiles/slurm/config.yaml", "gpus: 1", "gpus: 2")
    project.replace("profiles/slurm/config.yaml", "nodes: 1", "nodes: 2")
    (project.root / "results/checkpoints/representation/sprites/diffsiam_hier/seed0.pt").unlink(missing_ok=True)
    project.run(*on_cluster(slurm, "representation@diffsiam_hier"))
    (job,) = jobs(slurm, project)
    assert (job["JobState"], job["NumNodes"], job["TresPerJob"]) == ("COMPLETED", "2", "gres:gpu:2")


def test_dvc_repro_submits_only_what_an_edit_touches(project: Clone, slurm: Cluster) -> None:
    hurry(project)
    profile = {"SNAKEMAKE_PROFILE": str(project.root / "profiles/slurm")}
    project.run(*slurm.inside, "dvc", "repro", "tables", **profile)
    assert jobs(slurm, project) == []
    project.edit("linear.penalties", 4)
    project.run(*slurm.inside, "dvc", "repro", "tables", **profile)
    assert ["linear" in job["Comment"] for job in jobs(slurm, project)] == [True]
    assert not any(stage.startswith(("linear", "tables")) for stage in project.changed())
