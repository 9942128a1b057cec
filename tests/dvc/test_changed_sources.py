"""`dvc repro` sees changed images, as Snakemake does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dvc.clones import Clone, ran

pytestmark = pytest.mark.slow


def add_class(folder: Path, name: str) -> None:
    for split, count in (("train", 4), ("test", 1)):
        for i in range(count):
            path = folder / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(path)


def test_a_class_added_to_ones_folder_is_prepared_anew_and_a_moved_folder_is_not(fresh: Clone, tmp_path: Path) -> None:
    clone = fresh.clone(tmp_path / "repo")
    clone.edit("transfer", ["DTD"])
    folder = clone.root / "resources/DTD"
    for name in ("dotted", "woven"):
        add_class(folder, name)
    assert ran(clone.dvc("repro", "data")) == ["data"]
    assert ran(clone.dvc("repro", "data")) == []

    add_class(folder, "striped")
    assert ran(clone.dvc("repro", "data")) == ["data"]
    assert len(np.load(clone.root / "results/data/DTD/labels_test.npy")) == 3
    assert ran(clone.dvc("repro", "data")) == []

    shutil.rmtree(clone.root / "resources")
    assert ran(clone.dvc("repro", "data")) == []
    assert clone.planned("data_sets") == {}
