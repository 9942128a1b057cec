"""A data set, parameters and a diffusion model that train in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from diffsiam import params, runtime
from diffsiam.models.unet import DiffusionModel
from diffsiam.training.inputs import Inputs
from diffsiam.training.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
SIDE = 8
IMAGES = 20
OVER: dict[str, Any] = {
    "diffusion": {
        "unet": {"channels": [4, 8], "norm_groups": 2, "attention_resolutions": [4], "dropout": 0.0},
        "steps": 4,
        "batch_size": 8,
    },
    "representation": {"encoder_width": 1, "segments": 4, "steps": 6, "batch_size": 8, "ema_decay": 0.5},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}


def section(cls: type, **changes: Any) -> Any:
    """One section of the demo's parameters, made tiny, with ``changes``."""
    name = next(k for k, v in params.SECTIONS.items() if v is cls)
    demo = str(ROOT / "workflow" / "presets" / "demo.yaml")
    return params.section(params.read(demo, json.dumps(OVER), json.dumps({name: changes})), cls)


CODES = {
    "count": 4,
    "dim": 3,
    "embedding": "orthogonal",
    "reconstruction": "l1",
    "weight": 0.5,
    "least_signal": 0.02,
    "weighting": "difference",
    "encoder_gradient": "code",
}


def representation_of(name: str, **changes: Any) -> params.Representation:
    """The section for one method: with codes where it has any."""
    codes = {"codes": CODES} if METHODS[name].coded else {}
    made: params.Representation = section(params.Representation, **codes, **changes)
    return made


def wake(module: nn.Module) -> None:
    """Weights in place of the zeros that a decoder starts from, so that its gradient reaches everything."""
    for name, layer in module.named_modules():
        if name.endswith("conv_out"):
            nn.init.normal_(layer.weight, std=0.3)


def images() -> np.ndarray:
    """Random pictures (20, 8, 8, 3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)


PURPOSES = ("view1", "view2", "noise", "mirror")


def given(step: int, count: int, *, rows: slice = slice(None), device: str = "cpu") -> Inputs:
    """Inputs of ``step`` whose images are the first ``count``, in their order, with generators of seed 0."""
    chosen = torch.from_numpy(images()[:count])
    inputs = Inputs(chosen, count, 0, torch.device(device), rows=rows, purposes=PURPOSES)
    inputs.load(step)
    inputs._indices.copy_(torch.arange(count)[rows])
    return inputs


def data(folder: Path) -> Path:
    """What training reads of a prepared data set."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images_train.npy", images())
    checksum = runtime.sha256(folder / "images_train.npy")
    runtime.write_json(folder / "meta.json", {"image_size": SIDE, "sha256": {"images_train.npy": checksum}})
    return folder


def diffusion_model() -> DiffusionModel:
    """A frozen model with random weights, none of them zero."""
    torch.manual_seed(5)
    model = DiffusionModel.create(section(params.Diffusion).unet, SIDE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model.eval().requires_grad_(False)


def saved_diffusion_model(folder: Path) -> Path:
    model = diffusion_model()
    model.save(folder, model.state_dict())
    return folder


def files_of(out: Path) -> dict[str, Any]:
    """What a training left: weights as bytes, and the history without its speed."""
    files: dict[str, Any] = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
    files["history"] = pd.read_csv(out / "history.csv").drop(columns="images_per_second").to_csv()
    return files
