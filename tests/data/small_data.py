"""Small data sets on disk, made by the tests that read them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    """A file of random pixels of ``size`` (width, height); PNG keeps them exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_folders(top: Path, counts: dict[str, dict[str, int]], size: tuple[int, int] = (8, 8)) -> Path:
    """Class folders with ``counts[split][class]`` random PNG files."""
    for s, (split, classes) in enumerate(counts.items()):
        for c, (name, count) in enumerate(classes.items()):
            (top / split / name).mkdir(parents=True)
            for i in range(count):
                save_image(top / split / name / f"{i:03d}.png", 10_000 * s + 100 * c + i, size)
    return top


def make_tar(path: Path, folder: Path, arcname: str, mode: str = "w") -> Path:
    """Pack ``folder`` under the name ``arcname``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname)
    return path
