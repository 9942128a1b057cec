"""A stop that reaches Snakemake's process alone, as a service manager's or `kill`'s, reaches its jobs.

Snakemake itself would wait for them: a training would run to its end. A terminal's Ctrl-C and SLURM signal every
process.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # Snakemake stands on it

from diffsiam import cluster, records

_PAUSE = 0.2  # seconds


def pass_on(*, cancel: bool) -> None:
    """From now on, let SIGTERM and SIGINT of this process end its jobs: trainings save their state first.

    Args:
        cancel: whether jobs are submitted to a cluster: a SIGTERM is then to cancel them, as a SIGINT does.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.default_int_handler if cancel else signal.getsignal(number)
        if callable(before):  # a run in the background may ignore SIGINT
            signal.signal(number, functools.partial(_stop, before, cancel))


_ending: list[threading.Thread] = []


def _stop(before: Callable[[int, FrameType | None], Any], cancel: bool, number: int, frame: FrameType | None) -> None:
    if not _ending:
        print("Stopping: trainings save their state, other jobs end.", file=sys.stderr)
        # On a cluster Snakemake's own children come after the jobs here: commands that it cancels the others with.
        jobs = psutil.Process().children() if cancel else None
        _ending.append(threading.Thread(target=_end_jobs, args=(jobs,), daemon=True))
        if cancel:  # Snakemake forgets jobs whose state it is just asking for
            _ending.append(threading.Thread(target=cluster.cancel, args=(records.submitted(),)))
        for thread in _ending:
            thread.start()
    before(number, frame)


def _end_jobs(jobs: list[psutil.Process] | None) -> None:
    """Send SIGTERM once to ``jobs``, or to every child of this process, and to all below them, for as long as this one
    lives: to those that ignore it (a training's shell, or a training that has not come to its loop) as soon as they do
    not."""
    sent: set[psutil.Process] = set()
    while True:
        for job in psutil.Process().children() if jobs is None else jobs:
            with contextlib.suppress(psutil.Error):  # it is over
                for process in (job, *job.children(recursive=True)):
                    if process not in sent and not _ignores(process.pid):
                        sent.add(process)
                        process.send_signal(signal.SIGTERM)
        time.sleep(_PAUSE)


def _ignores(pid: int) -> bool:
    """Whether a process ignores SIGTERM, where the system tells."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
