"""A trained encoder, a diffusion model and their results, as a run leaves them, with tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from diffsiam import runtime
from diffsiam.models.encoder import Encoder
from diffsiam.models.unet import WEIGHTS
from tests.report.small_results import fewshot, linear
from tests.training import tiny

WIDTH = 1
IMAGES = "1" * 64  # checksum of the images
COLLECTED = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc1234",
    "python": "3.11.7",
    "machine": "Linux x86_64, 2 cores, Some CPU",
    "gpus": ["Some GPU"],
    "versions": {"torch": "2.14.1", "dvc": None},
}


def encoder(results: Path, pretrain: str = "sprites", method: str = "diffsiam_hier", **record: Any) -> Path:
    """Its folder, seed 3, beside the meta.json of its data and results on digits."""
    meta = {"dataset": pretrain, "image_size": tiny.SIDE, "counts": {"train": 30, "test": 12}}
    runtime.write_json(results / "data" / pretrain / "meta.json", meta | {"sha256": {"images_train.npy": IMAGES}})
    below = Path(pretrain, method, "seed3")
    torch.manual_seed(0)
    for stem in ("encoder", "encoder_ema", "decoder_ema", "heads"):
        runtime.save_weights(
            results / "representation" / below / f"{stem}.safetensors", Encoder(WIDTH, tiny.SIDE).state_dict()
        )
    config = {"method": method, "seed": 3, "encoder": "resnet10", "encoder_width": WIDTH, "image_size": tiny.SIDE}
    section = {"steps": 6, "batch_size": 8, "encoder_width": WIDTH}
    config |= {"segments": 4, "dim": 8 * WIDTH, "params": {"representation": section, "images": IMAGES}}
    config |= {"device": "cpu", "precision": "float32", "seconds": 1.5, "collected": COLLECTED}
    runtime.write_json(results / "representation" / below / "config.json", config | record)
    for protocol, result in (
        ("linear", linear(method, "digits", 3, 51.25, ci95=0.75)),
        ("fewshot", fewshot(method, "digits", 3, {"1": [10, 20], "5": [20, 20]})),
    ):
        path = results / protocol / below / "digits.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    return results / "representation" / below


def diffusion(results: Path, **record: Any) -> Path:
    """The folder of one that was trained on sprites."""
    folder = results / "diffusion" / "sprites"
    model = tiny.diffusion_model()
    model.save(folder, model.state_dict())
    assert (folder / WEIGHTS).is_file()
    section = {"seed": 4, "steps": 7, "batch_size": 8}
    facts = {"device": "cpu", "precision": "float32", "seconds": 1.5, "collected": COLLECTED}
    training = {"params": {"diffusion": section, "images": IMAGES}, **facts}
    runtime.write_json(folder / "training.json", record or training)
    return folder
