"""How `make test` divides the tests between its two workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Folders whose tests share a finished run, or the one cluster that a machine can have: each stays with one worker. They
# are begun first, since they take longest and mostly wait.
WHOLE = ("slurm", "dvc")
FIRST = (*WHOLE, "workflow", "training")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of two workers on two cores wait for each other


@pytest.hookimpl(tryfirst=True)  # the workers read the groups in this hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A file's tests share fixtures, so they stay together too."""
    if not hasattr(config, "workerinput"):
        return
    folder = {item: item.path.relative_to(HERE).parts[0] for item in items}
    items.sort(key=lambda item: FIRST.index(folder[item]) if folder[item] in FIRST else len(FIRST))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(folder[item] if folder[item] in WHOLE else item.path.stem))
