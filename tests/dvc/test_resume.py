"""A killed `dvc repro` goes on where its training was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

from tests.dvc.clones import Clone

STAGE = "representation@diffsiam_hier"


def test_a_killed_dvc_repro_resumes_its_training_from_the_checkpoint(pulled: Clone) -> None:
    pulled.edit("representation.steps", 60)
    pulled.edit("runtime.checkpoint_minutes", 0.0001)
    checkpoint = pulled.root / "results/checkpoints/representation/sprites/diffsiam_hier/seed0.pt"
    run = subprocess.Popen(
        ["dvc", "repro", STAGE],
        cwd=pulled.root,
        env=pulled.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not checkpoint.exists():
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert any((pulled.root / ".snakemake/locks").iterdir())

    done = pulled.run("dvc", "repro", STAGE)
    said = done.stdout + done.stderr
    assert "Removed the locks of a run that was killed" in said
    resumed = re.search(rf"resuming from .*{checkpoint.name} at step (\d+)", said)
    assert resumed
    assert 0 < int(resumed[1]) < 60
    assert pulled.planned(STAGE) == {}


def test_locks_of_a_run_that_lives_are_left_alone(pulled: Clone) -> None:
    pulled.edit("representation.steps", 2000)
    checkpoint = pulled.root / "results/checkpoints/representation/sprites/diffsiam_hier/seed0.pt"
    pulled.edit("runtime.checkpoint_minutes", 0.0001)
    run = subprocess.Popen(
        ["snakemake", "--cores", "1", STAGE],
        cwd=pulled.root,
        env=pulled.env,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not checkpoint.exists():
            assert run.poll() is None
            time.sleep(0.05)
        second = pulled.run("snakemake", "--cores", "1", STAGE, check=False)
        assert second.returncode != 0
        assert "cannot be locked" in second.stdout + second.stderr
        assert pulled.planned("fewshot@diffsiam_hier") != {}  # planning is free, also meanwhile
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
