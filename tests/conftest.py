"""How `make test` divides the tests between its two workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# Folders whose tests share a finished run, or the one cluster that a machine can have: each stays with one worker.
WHOLE = ("slurm", "dvc")
FIRST = (*WHOLE, "workflow", "training")  # they take longest, and the cluster mostly waits

# Snakemake's SLURM plugin asks the cluster something whenever it is imported, and waits 10 s for one that it cannot
# reach: that of tests/slurm, from everywhere else. An empty configuration ends that at once.
os.environ["SLURM_CONF"] = os.devnull

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of two workers on two cores wait for each other


def folder(path: Path) -> str:
    """The part of the package that a test file is about."""
    return path.relative_to(HERE).parts[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first where there are workers; else files come in their order."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (*FIRST, folder(item.path)).index(folder(item.path)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told when it comes, in a line: the whole report is half an hour away."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        cause = str(crash.message if crash else report.longrepr).strip().partition("\n")[0]
        print(f"\n{report.when} of {report.nodeid}: {cause}", file=sys.__stderr__, flush=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files whole, since their tests share fixtures, and some folders. xdist's own groups are lost under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            part = folder(config.rootpath / file)
            return part if part in WHOLE else file

    return Scheduling(config, log)
