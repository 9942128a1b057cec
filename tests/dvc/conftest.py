"""One finished, committed and pushed run, shared by the tests; each test works in clones of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dvc.clones import Clone, working_tree

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands on the finished run takes minutes."""
    for item in items:
        if HERE in item.path.parents and isinstance(item, pytest.Function) and "finished" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


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


@pytest.fixture(scope="session")
def once_pulled(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone of the finished run after ``dvc pull``. Not to be changed by a test."""
    clone = finished.clone(tmp_path_factory.mktemp("pulled") / "repo")
    clone.dvc("pull")
    return clone


@pytest.fixture
def pulled(once_pulled: Clone, tmp_path: Path) -> Clone:
    """A clone of the finished run after ``dvc pull``, of the test's own."""
    return once_pulled.copy(tmp_path / "repo")
