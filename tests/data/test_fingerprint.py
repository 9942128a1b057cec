"""A fingerprint changes with what a source holds, and not with its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffsiam.data import fingerprint, sources


def put(path: Path, text: str = "x", time: float = 1e9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time, time))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Class folders of DTD, a tar of Pets, Bedroom's LMDBs, CIFAR-10 as published, and one part of Flowers' three."""
    root = tmp_path / "resources"
    for image in ("train/dotted/1.png", "train/woven/1.png", "test/dotted/1.png"):
        put(root / "DTD" / image)
    put(root / "Pets.tar")
    for part in ("train", "val"):
        put(root / f"bedroom_{part}_lmdb" / "data.mdb")
        put(root / f"bedroom_{part}_lmdb" / "lock.mdb")
    put(root / "cifar-10-batches-py" / "data_batch_1")
    put(root / "flowers-102" / "setid.mat")
    put(root / "3dshapes" / "3dshapes.h5")
    put(root / "mpi3d" / "mpi3d_toy.npz")
    put(root / "dsprites" / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5")
    put(root / "cars3d" / "cars" / "car_001_mesh.mat")
    return root


def of(name: str, root: Path) -> str | None:
    return fingerprint.take(fingerprint.parts(sources.get(name), root), root)


def rename(root: Path) -> None:
    (root / "DTD/train/woven").rename(root / "DTD/train/braided")


def point_at_another_folder(root: Path) -> None:
    put(root.parent / "elsewhere" / "2.png")
    (root / "DTD/train/dotted/linked").symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("DTD", lambda root: put(root / "DTD/train/dotted/2.png")),
        ("DTD", lambda root: put(root / "DTD/valid/dotted/1.webp")),
        ("DTD", lambda root: put(root / "DTD/train/dotted/1.png", "longer")),
        ("DTD", lambda root: (root / "DTD/test/dotted/1.png").unlink()),
        ("DTD", rename),
        ("DTD", point_at_another_folder),
        ("Pets", lambda root: put(root / "Pets.tar", "longer")),
        ("Pets", lambda root: put(root / "Pets.tar", time=2e9)),
        ("Bedroom", lambda root: put(root / "bedroom_val_lmdb/data.mdb", time=2e9)),
        ("CIFAR10", lambda root: put(root / "cifar-10-batches-py/data_batch_2")),
        ("CIFAR10", lambda root: put(root / "CIFAR10/train/cat/1.png")),
        ("Shapes3D", lambda root: put(root / "3dshapes/3dshapes.h5", time=2e9)),
        ("Shapes3D", lambda root: put(root / "Shapes3D/train/a/1.png")),
        ("MPI3Dtoy", lambda root: put(root / "mpi3d/mpi3d_toy.npz", time=2e9)),
        ("dSprites", lambda root: put(next((root / "dsprites").iterdir()), time=2e9)),
        ("Cars3D", lambda root: put(root / "cars3d/cars/car_002_mesh.mat")),
    ],
)
def test_a_change_of_the_source_changes_it(name: str, edit: Callable[[Path], None], root: Path) -> None:
    before = of(name, root)
    assert before is not None
    edit(root)
    assert of(name, root) not in (before, None)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("DTD", lambda root: put(root / "DTD/train/dotted/1.png", time=2e9)),
        ("DTD", lambda root: put(root / "DTD/train/dotted/._1.png")),
        ("DTD", lambda root: put(root / "DTD/.git/HEAD")),
        ("DTD", lambda root: put(root / "DTD/train/dotted/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg")),
        ("DTD", lambda root: (root / "DTD/train/dotted/loop").symlink_to(root / "DTD")),
        ("DTD", lambda root: put(root / "CIFAR10/train/cat/1.png")),
        ("Bedroom", lambda root: put(root / "bedroom_val_lmdb/lock.mdb", "longer", 2e9)),
    ],
)
def test_what_no_image_depends_on_does_not(name: str, edit: Callable[[Path], None], root: Path) -> None:
    before = of(name, root)
    edit(root)
    assert of(name, root) == before


@pytest.mark.parametrize("name", ["DTD", "Pets", "Bedroom", "CIFAR10"])
def test_another_place_does_not(name: str, root: Path, tmp_path: Path) -> None:
    before = of(name, root)
    assert of(name, Path(os.path.relpath(root))) == before
    moved = Path(shutil.copytree(root, tmp_path / "scratch" / "deep"))
    assert of(name, moved) == before
    assert len({of(n, root) for n in ("DTD", "Pets", "Bedroom", "CIFAR10")}) == 4


@pytest.mark.parametrize("name", ["Food", "Flowers", "MPI3Dreal"])
def test_what_is_not_there_or_only_in_part_has_none(name: str, root: Path) -> None:
    assert of(name, root) is None
    assert of("DTD", root / "nowhere") is None


@pytest.mark.parametrize(
    ("location", "changed", "seen"),
    [
        ("pipe/unet", "pipe/unet/config.json", True),
        ("pipe/unet", "pipe/scheduler/scheduler_config.json", True),
        ("pipe/unet/model.safetensors.index.json", "pipe/unet/model-00001-of-00002.safetensors", True),
        ("pipe/unet/model.safetensors.index.json", "pipe/unet/config.json", True),
        ("pipe/unet/model.safetensors.index.json", "pipe/scheduler/scheduler_config.json", True),
        ("pipe/unet/model.safetensors.index.json", "pipe/unet/other.safetensors", False),
        ("pipe/unet", "pipe/vae/config.json", False),
    ],
)
def test_a_models_fingerprint_is_of_all_that_is_read_of_it(
    location: str, changed: str, seen: bool, tmp_path: Path
) -> None:
    for name in ("unet/config.json", "unet/model.safetensors.index.json", "unet/model-00001-of-00002.safetensors"):
        put(tmp_path / "pipe" / name)
    put(tmp_path / "pipe/scheduler/scheduler_config.json")
    before = fingerprint.model(tmp_path / location)
    put(tmp_path / changed, "longer")
    assert (fingerprint.model(tmp_path / location) != before) == seen


def test_the_last_one_stands_while_the_source_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = ["a", None, "a", "b", None]
    assert [fingerprint.recorded("data/DTD", now) for now in seen] == ["a", "a", "a", "b", "b"]
    assert fingerprint.recorded("data/Pets", "c") == "c"


def test_a_download_is_no_change_and_an_edit_of_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = [None, None, "a", "a", None, "b", "a"]
    recorded = [fingerprint.recorded("data/DTD", now) for now in seen]
    away = fingerprint.DOWNLOADED
    assert recorded == [away, away, away, away, away, "b", away]
