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

_PAUSE = 0.2  # seconds


def pass_on(*, cancel: bool) -> None:
    """From now on, let SIGTERM and SIGINT of this process end its jobs: trainings save their state first.

    Args:
        cancel: whether a SIGTERM is to cancel submitted jobs too, as a SIGINT does.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.default_int_handler if cancel else signal.getsignal(number)
        if callable(before):  # a run in the background may ignore SIGINT
            signal.signal(number, functools.partial(_stop, before))


_ENDING = threading.Thread(target=lambda: _end_jobs(), daemon=True)


def _stop(before: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    if not _ENDING.is_alive():
        print("Stopping: trainings save their state, other jobs end.", file=sys.stderr)
        _ENDING.start()
    before(number, frame)


def _end_jobs() -> None:
    """Send SIGTERM once to every process below this one, for as long as this one lives: to those that ignore it (a
    training's shell, or a training that has not come to its loop) as soon as they do not."""
    import psutil  # as Snakemake does

    sent: set[Any] = set()
    while True:
        for process in psutil.Process().children(recursive=True):
            if process not in sent and not _ignores(process.pid):
                sent.add(process)
                with contextlib.suppress(psutil.Error):  # it is over
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
