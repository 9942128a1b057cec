"""The command line's own promises: exit status and messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffsiam import cli
from diffsiam.evaluation import features

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.10 GiB is free."
)
COMMAND = ["features", "--encoder", "e.safetensors", "--data", "data", "--out", "f.npz"]


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(*args: object) -> None:
        raise error

    monkeypatch.setattr(features, "run", run)
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    return cli.main(COMMAND)


def test_a_full_gpu_is_one_message_that_says_how_to_share_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(torch.OutOfMemoryError(FULL), monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffsiam features: the GPU's memory is full (CUDA out of memory). ")
    assert "--resources gpu_jobs=1" in said
    assert said.count("\n") == 1


def test_any_other_error_of_pytorch_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        fails_with(RuntimeError("a bug"), monkeypatch)
