"""Small arrays in the formats of the generative half, a trained encoder's record, and histories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RANGES = [[0, 0], [0, 2], [2, 4], [4, 6], [0, 8]]  # the empty one first, the last is all of z
SIZE = 8


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, SIZE, SIZE, 3), np.uint8)


def denoise(folder: Path, seed: int = 0) -> Path:
    path = folder / "denoise.npz"
    steps = np.array([100, 400, 800])
    arrays = {"images": pictures(4, 3, seed=seed), "noisy": pictures(4, 3, seed=seed + 1), "originals": pictures(4)}
    np.savez(path, timesteps=steps, **arrays)
    return path


def counterfactual(folder: Path, method: str, seed: int = 0) -> Path:
    """Rows with x_T exchanged, and below them those with the image's own."""
    path, n = folder / f"counterfactual_{method}.npz", len(RANGES)
    np.savez(
        path,
        images=pictures(2, 2 * n, 4, seed=seed),
        reverse=pictures(2, 2 * n, 4, seed=seed + 1),
        sources=pictures(2, seed=100),
        targets=pictures(2, seed=101),
        ranges=np.array(2 * RANGES),
        exchanged=np.repeat([True, False], n),
        scales=np.array([0.25, 0.5, 0.75, 1.0]),
        indices=np.array([[5, 812], [33, 4]]),
    )
    return path


def counterfactual_of_before(folder: Path, method: str) -> Path:
    """As a version without `generation.exchange_noise` left it: x_T exchanged, and no row of the empty range."""
    arrays = dict(np.load(counterfactual(folder, method)))
    kept = {name: arrays.pop(name)[:, 1 : len(RANGES)] for name in ("images", "reverse")}
    del arrays["exchanged"]
    path = folder / f"before_{method}.npz"
    np.savez(path, **arrays | kept | {"ranges": np.array(RANGES[1:])})
    return path


def manipulation(folder: Path, method: str, seed: int = 0) -> Path:
    path = folder / f"manipulation_{method}.npz"
    np.savez(
        path,
        images=pictures(4, 4, 5, seed=seed),
        originals=pictures(4, seed=100),
        attributes=np.array(["Wearing Hat", "Wearing Hat", "Dark background", "Dark background"]),
        dims=np.array([128, 512, 512, 512]),  # the second attribute's masked classifier keeps all of z
        masked=np.array([True, False, True, False]),
        scales=np.array([-6.8, -3.4, 0.0, 3.4, 6.8]),
        indices=np.array([5, 812, 33, 4]),
    )
    return path


def history(folder: Path, method: str, level: float) -> Path:
    path = folder / f"{method}.csv"
    path.write_text("step,loss,diffusion\n" + "".join(f"{s},{2 * level},{level / s}\n" for s in range(1, 101)))
    return path


def record(folder: Path) -> Path:
    """config.json of an encoder of width 4."""
    path = folder / "representation.json"
    path.write_text(json.dumps({"encoder_width": 4, "image_size": 16, "dim": 32, "segments": 16}))
    return path


def unet(folder: Path) -> Path:
    """config.json of a diffusion model with two levels."""
    from diffsiam.models.unet import DiffusionModel
    from diffsiam.params import Unet

    model = DiffusionModel.create(Unet((8, 16), 1, (8,), 4, 0.0), 16)
    model.save(folder / "dm", model.state_dict())
    return folder / "dm" / "config.json"
