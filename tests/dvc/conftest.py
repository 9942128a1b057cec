"""One finished, committed and pushed run, shared by the tests; each test works in clones of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from clones import Clone, working_tree


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The repository as it is shipped: no results, no records, no dvc.lock."""
    return working_tree(tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="session")
def finished(fresh: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """After ``dvc repro``, ``git add --all``, ``git commit`` and ``dvc push``. Not to be changed by a test."""
    clone = fresh.clone(tmp_path_factory.mktemp("finished") / "repo")
    clone.dvc("remote", "add", "--quiet", "--default", "folder", str(tmp_path_factory.mktemp("remote")))
    clone.dvc("repro")
    clone.commit()
    clone.dvc("push")
    return clone


@pytest.fixture
def pulled(finished: Clone, tmp_path: Path) -> Clone:
    """A clone of the finished run after ``dvc pull``."""
    clone = finished.clone(tmp_path / "repo")
    clone.dvc("pull")
    return clone
