"""A stop that reaches Snakemake's process alone saves the state of its training, and all ends."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.dvc.clones import Clone, working_tree

pytestmark = pytest.mark.slow
TARGET = "results/representation/digits/simsiam/seed0/config.json"
CHECKPOINT = "results/checkpoints/representation/digits/simsiam/seed0.pt"
STATE = "the state is in"
LIMIT = 300  # seconds after which a stop hangs, also on a machine with much else to do


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Everything but the training, which would take hours."""
    clone = working_tree(tmp_path_factory.mktemp("stop"), tmp_path_factory.mktemp("scratch"))
    clone.edit("representation.steps", 1_000_000)
    clone.run("snakemake", "--cores", "1", "results/data/digits/meta.json")
    return clone


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so would all that the tests start from one."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@contextmanager
def running(clone: Clone, *options: str) -> Iterator[psutil.Popen]:
    """Snakemake at the training; whatever the test leaves running is killed."""
    command = ["snakemake", "--cores", "1", "--rerun-incomplete", *options, TARGET]
    with open(clone.root / "run.log", "w") as log:
        run = psutil.Popen(command, cwd=clone.root, env=clone.env, stdout=log, stderr=log, start_new_session=True)
    below: list[psutil.Process] = []
    try:
        while not (below := trainers(run)):
            assert run.poll() is None, said(clone)
            time.sleep(0.01)
        yield run
    finally:
        for process in (run, *below):
            if process.is_running():
                process.kill()


def trainers(run: psutil.Popen) -> list[psutil.Process]:
    return [p for p in run.children(recursive=True) if "representation" in arguments(p)]


def arguments(process: psutil.Process) -> list[str]:
    """Nothing where it is over."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def said(clone: Clone) -> str:
    return (clone.root / "run.log").read_text()


def wait_for(clone: Clone, path: Path) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < until, said(clone)
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_snakemake_alone_ends_a_training_with_its_state_saved(
    number: int, prepared: Clone, tmp_path: Path
) -> None:
    clone = prepared.copy(tmp_path / "repo")
    clone.edit("runtime.checkpoint_minutes", 0.001)
    checkpoint = clone.root / CHECKPOINT
    with running(clone) as run:
        wait_for(clone, checkpoint)
        (trainer,) = trainers(run)
        run.send_signal(number)
        assert run.wait(LIMIT) != 0
        assert not trainer.is_running()
    assert f"{STATE} {CHECKPOINT}" in said(clone)
    assert "Traceback" not in said(clone)
    with running(clone) as run:
        (trainer,) = trainers(run)
        log = clone.root / "results/logs/representation/digits/simsiam/seed0.log"
        until = time.monotonic() + 120
        while "resuming from" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < until, said(clone)
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait(LIMIT) != 0


def test_a_stop_before_the_first_step_is_not_lost(prepared: Clone, tmp_path: Path) -> None:
    """The trainer's shell ignores SIGTERM, and the trainer too until it has come to its loop."""
    clone = prepared.copy(tmp_path / "repo")
    with running(clone) as run:
        (trainer,) = trainers(run)
        run.terminate()
        assert run.wait(LIMIT) != 0
        assert not trainer.is_running()
    assert (clone.root / CHECKPOINT).exists()
    assert STATE in said(clone)


def test_a_job_that_saves_no_state_ends_too_and_leaves_no_output(prepared: Clone, tmp_path: Path) -> None:
    clone = prepared.copy(tmp_path / "repo")
    clone.replace("workflow/rules/data.smk", '"diffsiam data', '"sleep 600; diffsiam data')
    with open(clone.root / "run.log", "w") as log:
        command = ["snakemake", "--cores", "1", "results/data/photos/meta.json"]
        run = subprocess.Popen(command, cwd=clone.root, env=clone.env, stdout=log, stderr=log, start_new_session=True)
    while not any("600" in arguments(p) for p in psutil.Process(run.pid).children(recursive=True)):
        assert run.poll() is None, said(clone)
        time.sleep(0.05)
    run.terminate()
    assert run.wait(30) != 0
    assert not (clone.root / "results/data/photos").exists() or not any((clone.root / "results/data/photos").iterdir())
