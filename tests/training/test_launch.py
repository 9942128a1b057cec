"""The launcher's command lines; tests/slurm runs them on a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from diffsiam.errors import UserError
from diffsiam.training import launch


class Replaced(Exception):
    """Stands for what `os.execvp` does: it does not come back."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the words of the command that the process would be replaced by."""
    words: list[str] = []

    def execvp(file: str, arguments: Sequence[str]) -> None:
        words.extend(arguments)
        raise Replaced

    monkeypatch.setattr(os, "execvp", execvp)
    return words


def test_one_node_is_torchrun_with_as_many_processes(command: list[str]) -> None:
    with pytest.raises(Replaced):
        launch.replace_process("diffsiam.cli", ["data", "x"], 4, 1)
    assert "srun" not in command
    assert command[command.index("--nproc-per-node") + 1] == "4"
    assert command[-4:] == ["-m", "diffsiam.cli", "data", "x"]


def test_several_nodes_are_one_torchrun_each_that_meet_at_this_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(Replaced):
        launch.replace_process("diffsiam.cli", [], 4, 2)
    assert command[0] == "srun"
    assert {"--nodes=2", "--ntasks=2"} <= set(command)
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[command.index("--rdzv-endpoint") + 1] == f"{os.uname().nodename}:20007"


def test_nodes_that_cannot_share_the_processes_or_are_not_there_are_one_message(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="--processes 3 --nodes 2"):
        launch.replace_process("diffsiam.cli", [], 3, 2)
    with pytest.raises(UserError, match="SLURM_JOB_ID is not set"):
        launch.replace_process("diffsiam.cli", [], 4, 2)
    assert command == []
