"""Where features are computed: few of them on the CPU, which is done before a GPU is set up."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffsiam import runtime
from diffsiam.evaluation import features
from diffsiam.models.encoder import Encoder
from tests.evaluation.test_mirror import RUNTIME

AUTO = dataclasses.replace(RUNTIME, device="auto")


@pytest.mark.parametrize(("side", "stem"), [(16, "3x3"), (64, "7x7")])
def test_operations_are_those_that_pytorch_counts(side: int, stem: str) -> None:
    encoder = Encoder(8, side, stem).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(torch.zeros(1, 3, side, side))
    assert features.operations(encoder, side) == counter.get_total_flops()
    assert not any(module._forward_hooks for module in encoder.modules())


@pytest.mark.parametrize(
    ("chosen", "work", "expected"),
    [("auto", 0.9, "cpu"), ("auto", 1.1, "cuda"), ("cuda", 0.9, "cuda")],
)
def test_few_images_leave_the_gpu_alone_unless_it_was_asked_for(
    chosen: str, work: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "select_device", lambda rt, steady: torch.device("cuda"))
    encoder = Encoder(2, 8).eval()
    count = int(work * features._FEW / features.operations(encoder, 8))
    rt = dataclasses.replace(AUTO, device=chosen)
    assert features.select_device(rt, encoder, 8, count).type == expected


def test_without_a_gpu_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "select_device", lambda rt, steady: torch.device("cpu"))
    monkeypatch.setattr(features, "operations", lambda model, side: pytest.fail("counted"))
    assert features.select_device(AUTO, Encoder(2, 8), 8, 10**9).type == "cpu"
