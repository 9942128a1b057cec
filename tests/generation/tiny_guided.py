"""A conditioned model of random weights, and the folders that `generation` reads, in milliseconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffsiam import params, runtime
from diffsiam.generation.model import Guided
from diffsiam.models.codes import CodeDecoder
from diffsiam.models.decoder import Decoder
from diffsiam.models.encoder import Encoder
from diffsiam.models.segments import even_edges
from diffsiam.models.unet import WEIGHTS
from tests.training import tiny

SIDE, WIDTH, SEGMENTS = tiny.SIDE, 2, 4
DIM = 8 * WIDTH
CODED: dict[str, Any] = {"count": SEGMENTS, "dim": DIM // SEGMENTS, "embedding": "learned"}
ATTRIBUTES = ["Red left", "Blue top"]
OVER = {
    "steps": 5,
    "solver": "ddim",
    "clip": False,
    "batch_size": 7,
    "pairs": {"seed": 0, "count": 2, "indices": None},
    "ranges": [{"dataset": "sprites", "ranges": [[0, 2]]}],
    "scales": [0.5, 1.0],
    "manipulation_scales": [-2.0, 0.0, 2.0],
    "noise_levels": [10, 500],
    "measured": 6,
    "classifier": {"width": 2, "steps": 3, "batch_size": 8},
}
RUNTIME = {"device": "cpu", "precision": "fp32", "threads": 1}


def settings(**changes: Any) -> params.Generation:
    """Section generation of the demo, made tiny."""
    demo = str(tiny.ROOT / "workflow" / "presets" / "demo.yaml")
    raw = params.read(demo, json.dumps({"generation": OVER, "runtime": RUNTIME}), json.dumps({"generation": changes}))
    return params.section(raw, params.Generation)


def networks() -> tuple[Any, Encoder, Decoder]:
    """Diffusion model, encoder and decoder, with no weight at zero."""
    dm = tiny.diffusion_model()
    torch.manual_seed(1)
    encoder, decoder = Encoder(WIDTH, SIDE), Decoder(dm.unet, DIM)
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return dm, encoder.eval(), decoder.eval()


def code_decoder(dm: Any) -> CodeDecoder:
    """DisDiff's, a code for each segment, with no weight at zero."""
    torch.manual_seed(2)
    made = CodeDecoder(dm.unet, **CODED)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return made.eval()


def model(
    *,
    mask_by_step: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    captured: bool = False,
    **changes: Any,
) -> Guided:
    dm, encoder, decoder = (network.to(dtype) for network in networks())
    edges, cfg = even_edges(DIM, SEGMENTS), settings(**changes)
    return Guided(dm, encoder, decoder, edges, cfg, mask_by_step=mask_by_step, device=device, captured=captured)


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Images (N, 3, SIDE, SIDE) in [-1, 1]."""
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def results(root: Path, method: str = "diffsiam_hier") -> Path:
    """What stages `data`, `diffusion` and `representation` leave, below ``root``/results."""
    folder, dm_folder = root / "results", root / "results" / "diffusion" / "sprites"
    rng = np.random.default_rng(0)
    data = folder / "data" / "sprites"
    data.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 30), ("test", 12)):
        np.save(data / f"images_{split}.npy", rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))
        np.save(data / f"attributes_{split}.npy", np.arange(2 * count, dtype=np.uint8).reshape(count, 2) // 3 % 2)
    meta = {"dataset": "sprites", "attributes": ATTRIBUTES, "image_size": SIDE, "counts": {"train": 30, "test": 12}}
    runtime.write_json(data / "meta.json", meta)
    dm, encoder, decoder = networks()
    dm.save(dm_folder, dm.state_dict())
    out = folder / "representation" / "sprites" / method / "seed0"
    runtime.save_weights(out / "encoder_ema.safetensors", encoder.state_dict())
    runtime.save_weights(out / "decoder_ema.safetensors", decoder.state_dict())
    section = dataclasses.asdict(
        tiny.section(params.Representation, encoder_width=WIDTH, segments=SEGMENTS),
    )
    config = {"method": method, "seed": 0, "encoder_width": WIDTH, "image_size": SIDE}
    config |= {"segments": SEGMENTS, "dim": DIM}
    recorded = {"representation": section, "diffusion_model": runtime.sha256(dm_folder / WEIGHTS)}
    runtime.write_json(out / "config.json", {**config, "params": recorded})
    return folder


def disdiff(results: Path) -> None:
    """DisDiff beside diffsiam_hier, on the same encoder and diffusion model."""
    folder = results / "representation" / "sprites"
    config = runtime.read_json(folder / "diffsiam_hier" / "seed0" / "config.json") | {"method": "disdiff"}
    config["params"]["representation"]["codes"] = CODED
    dm, encoder, _ = networks()
    out = folder / "disdiff" / "seed0"
    runtime.save_weights(out / "encoder_ema.safetensors", encoder.state_dict())
    runtime.save_weights(out / "decoder_ema.safetensors", code_decoder(dm).state_dict())
    runtime.write_json(out / "config.json", config)
