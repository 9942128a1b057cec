"""The record of a training: what it depends on, its history, and how it was made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsiam import runtime
from diffsiam.params import Runtime
from diffsiam.training import loop

if TYPE_CHECKING:
    import torch

_COMPUTE = (
    "device",
    "precision",
    "threads",
    "deterministic",
    "compile",
    "graph",
)  # keys of runtime that bits depend on


def identity(data: Path, *, rt: Runtime, device: torch.device, **parts: Any) -> dict[str, Any]:
    """What a training depends on: its parameters, the images and the arithmetic. A captured step rounds differently
    from an eager one, so ``graph`` says what is done on ``device``."""
    compute = {name: value for name, value in dataclasses.asdict(rt).items() if name in _COMPUTE}
    compute["graph"] = runtime.use_graph(rt, device)
    checksums = runtime.read_json(data / "meta.json")["sha256"]
    return {**parts, "runtime": compute, "images": checksums["images_train.npy"]}


def finish(
    config: Path,
    history_csv: Path,
    plan: loop.Plan,
    history: list[dict[str, float]],
    began: float,
    **more: Any,
) -> None:
    """Write the history and the record of a run, and drop its checkpoint."""
    write(config, history_csv, plan.identity, plan.device, plan.dtype, history, began, **more)
    plan.checkpoint.unlink(missing_ok=True)


def write(
    config: Path,
    history_csv: Path,
    identity: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    history: list[dict[str, float]],
    began: float,
    **more: Any,
) -> None:
    """Write the history, and the record of what depends on ``identity`` and was computed on ``device`` in ``dtype``."""
    import pandas as pd

    with runtime.atomic(history_csv) as temporary:
        pd.DataFrame(history or {"step": [], "loss": []}).to_csv(temporary, index=False, float_format="%.6g")
    record = {
        **more,
        "params": identity,
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "seconds": round(time.monotonic() - began, 1),
        "collected": runtime.provenance(),
    }
    runtime.write_json(config, record)
