"""Small files in the published layouts: read whole and in order, or refused by what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image
from small_data import make_tar

from diffsiam import params
from diffsiam.data import images, prepare, published_grids, sources
from diffsiam.data.grid import Grid
from diffsiam.data.sources import DataSet
from diffsiam.errors import UserError
from tests.data.conftest import Web

# Numbers of values in the small grids, of the factors that the published ones have.
SIZES = {
    "Shapes3D": (2, 3, 2, 3, 4, 2),
    "MPI3Dtoy": (2, 3, 2, 1, 3, 2, 2),
    "MPI3Dreal": (3, 2, 2, 1, 1, 5, 2),
    "Cars3D": (4, 3, 5),
    "dSprites": (3, 2, 4, 3, 2),
}
SIDE = 8


def pixels(name: str) -> np.ndarray:
    """Images of the small grid, (N, SIDE, SIDE, 3), or in {0, 1} without channels for dSprites."""
    shape = (math.prod(SIZES[name]), SIDE, SIDE, 3)
    drawn = np.random.default_rng(len(name)).integers(0, 256, shape, np.uint8)
    return drawn[..., 0] % 2 if name == "dSprites" else drawn


def cells(name: str) -> np.ndarray:
    return np.array(list(np.ndindex(*SIZES[name])))


def shapes3d(path: Path, images: np.ndarray, factors: np.ndarray) -> None:
    """As published: factors in their own units."""
    units = [np.arange(10) / 10] * 3 + [np.linspace(0.75, 1.25, 8), np.arange(4.0), np.linspace(-30, 30, 15)]
    labels = np.stack([unit[column] for unit, column in zip(units, factors.T, strict=True)], axis=-1)
    with h5py.File(path, "w") as f:
        f.create_dataset("images", data=images, chunks=(50, 4, 8, 3), compression="gzip")
        f.create_dataset("labels", data=labels)


def dsprites(path: Path, images: np.ndarray, factors: np.ndarray) -> None:
    """As published: the colour, of one value, stands before the factors."""
    with h5py.File(path, "w") as f:
        f.create_dataset("imgs", data=images)
        f.create_dataset("latents/classes", data=np.insert(factors, 0, 0, axis=1))


def mpi3d(path: Path, images: np.ndarray, _: np.ndarray) -> None:
    np.savez(path, images=images)


def mpi3d_compressed(path: Path, images: np.ndarray, _: np.ndarray) -> None:
    np.savez_compressed(path, images=images)


def cars(path: Path, images: np.ndarray, factors: np.ndarray) -> None:
    """A file for each type: (side, side, 3, azimuth, elevation)."""
    path.mkdir()
    elevations, azimuths, types = SIZES["Cars3D"]
    for kind in range(types):
        mesh = np.zeros((*images.shape[1:], azimuths, elevations), np.uint8)
        for image, (elevation, azimuth, of) in zip(images, factors, strict=True):
            if of == kind:
                mesh[..., azimuth, elevation] = image
        scipy.io.savemat(path / f"car_{kind + 1:03d}_mesh.mat", {"im": mesh}, do_compression=True)
    (path / "list.txt").write_text("not read")


Make = Callable[[Path, np.ndarray, np.ndarray], None]
MAKERS: list[tuple[str, Make]] = [
    ("Shapes3D", shapes3d),
    ("MPI3Dtoy", mpi3d),
    ("MPI3Dreal", mpi3d_compressed),
    ("Cars3D", cars),
    ("dSprites", dsprites),
]


def small(name: str, monkeypatch: pytest.MonkeyPatch, url: str | None = None, checksum: str | None = None) -> DataSet:
    """The row of ``name`` with a small grid, as `prepare.run` finds it."""
    row = sources.get(name)
    factors = tuple((factor, size) for (factor, _), size in zip(row.factors, SIZES[name], strict=True))
    archive = dataclasses.replace(row.archives[0], url=url, checksum=checksum)
    row = dataclasses.replace(row, factors=factors, train=math.prod(SIZES[name]), test=10, archives=(archive,))
    monkeypatch.setitem(sources.DATASETS, name, row)
    return row


def place(row: DataSet, root: Path) -> Path:
    """Where its file belongs; the folder is made."""
    (path,) = row.archives[0].parts(root)
    path.parent.mkdir(parents=True)
    return path


# ---------------------------------------------------------------------------------------------------- whole grids
@pytest.mark.parametrize(("name", "make"), MAKERS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_published_grid_becomes_an_array_in_its_order(
    name: str, make: Make, tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = small(name, monkeypatch)
    monkeypatch.setattr(published_grids, "_BLOCK", 7)
    images, factors = pixels(name), cells(name)
    make(place(row, Path(cfg.root)), images, factors)
    prepare.run(name, dataclasses.replace(cfg, max_broken=1.0), tmp_path / "out")
    train = np.load(tmp_path / "out" / "images_train.npy")
    expected = np.repeat(images[..., None] * 255, 3, axis=-1) if images.ndim == 3 else images
    assert np.array_equal(train, expected)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["counts"] == {"train": len(images), "test": 10}
    grid = Grid.of(meta)
    assert grid == Grid(tuple(factor for factor, _ in row.factors), SIZES[name])
    assert np.array_equal(grid.factors(np.arange(grid.size)), factors)
    assert str(tmp_path) not in json.dumps(meta)


def test_images_of_another_size_are_resized_as_everywhere(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = small("Cars3D", monkeypatch)
    large = np.random.default_rng(0).integers(0, 256, (row.train, 20, 20, 3), np.uint8)
    cars(place(row, Path(cfg.root)), large, cells("Cars3D"))
    prepare.run("Cars3D", cfg, tmp_path / "out")
    expected = [np.asarray(images.resize(Image.fromarray(image), SIDE)) for image in large]
    assert np.array_equal(np.load(tmp_path / "out" / "images_train.npy"), expected)


def test_test_images_are_drawn_from_the_grid_by_seed(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = small("MPI3Dreal", monkeypatch)
    images = pixels("MPI3Dreal")
    mpi3d_compressed(place(row, Path(cfg.root)), images, cells("MPI3Dreal"))
    drawn = []
    for seed in (0, 0, 1):
        prepare.run("MPI3Dreal", dataclasses.replace(cfg, split_seed=seed), tmp_path / "out")
        test = np.load(tmp_path / "out" / "images_test.npy")
        drawn.append([int(np.flatnonzero((images == image).all(axis=(1, 2, 3)))[0]) for image in test])
    assert len(set(drawn[0])) == 10
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0]) > 60  # of 120 rows
    assert drawn[0] != sorted(drawn[0])  # pairs of neighbours in a figure are no neighbours in the grid


@pytest.mark.parametrize("make", [mpi3d, mpi3d_compressed])
def test_rows_come_in_any_order_from_any_number_of_threads(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = small("MPI3Dtoy", monkeypatch)
    images = pixels("MPI3Dtoy")
    make(place(row, tmp_path), images, cells("MPI3Dtoy"))
    monkeypatch.setattr(published_grids, "_BLOCK", 5)
    load = published_grids.read(row, tmp_path).splits["train"].load
    order = np.random.default_rng(0).permutation(len(images))
    with ThreadPoolExecutor(4) as pool:
        met = list(pool.map(lambda i: np.asarray(load(int(i))), order))
    assert np.array_equal(met, images[order])


def test_images_that_lie_in_a_zip_as_they_are_are_not_read_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = small("MPI3Dtoy", monkeypatch)
    path = place(row, tmp_path)
    images = pixels("MPI3Dtoy")
    with zipfile.ZipFile(path, "w") as archive:  # other entries before it, and an extra field of its own
        archive.writestr("readme.txt", "x" * 100)
        entry = zipfile.ZipInfo("images.npy")
        entry.extra = b"\xff\xff\x04\x00abcd"
        buffer = io.BytesIO()
        np.save(buffer, images)
        archive.writestr(entry, buffer.getvalue())
    image = published_grids.mpi3d(path, row)
    assert isinstance(image(3), np.memmap)
    assert np.array_equal([image(i) for i in range(len(images))], images)


# ------------------------------------------------------------------------------------------------------ refusals
def swapped(images: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.arange(len(images))
    order[[5, 9]] = order[[9, 5]]
    return images[order], factors[order]


@pytest.mark.parametrize(
    ("name", "make", "edit", "message"),
    [
        ("Shapes3D", shapes3d, swapped, r"2 of 288 rows are out of the grid's order, the first row 5: .*\[0, 0, 0, 1"),
        ("dSprites", dsprites, swapped, r"2 of 144 rows are out of the grid's order"),
        (
            "Shapes3D",
            shapes3d,
            lambda x, f: (x[:-1], f[:-1]),
            r"holds 287 images; the whole grid has 288: floor",
        ),
        ("dSprites", dsprites, lambda x, f: (x[:100], f[:100]), r"holds 100 images; the whole grid has 144: shape 3 x"),
        ("Shapes3D", shapes3d, lambda x, f: (x, f[:-1]), r"its 287 rows of factors"),
        ("Shapes3D", shapes3d, lambda x, f: (x, f[:, [0, 1, 2, 3, 4, 0]]), r"144 of 288 rows are out"),
        (
            "Shapes3D",
            shapes3d,
            lambda x, f: (x, np.minimum(f, 1)),
            r"take 2 x 2 x 2 x 2 x 2 x 2 values; .*2 x 3 x",
        ),
        ("MPI3Dtoy", mpi3d, lambda x, f: (x[:64], f), r"holds 64 images; the whole grid has 144: object colour 2 x"),
        ("MPI3Dtoy", mpi3d, lambda x, f: (x / 255, f), r"images are float64, .*needed is uint8"),
        (
            "MPI3Dtoy",
            mpi3d,
            lambda x, f: (x.reshape(4, 36, 8, 8, 3), f),
            r"\(4, 36, 8, 8, 3\); needed is uint8",
        ),
        ("MPI3Dtoy", mpi3d, lambda x, f: (np.asfortranarray(x), f), r"Fortran's order"),
        ("MPI3Dtoy", mpi3d, lambda x, f: (np.array([{}], object), f), r"images are object"),
    ],
)
def test_what_is_not_the_whole_grid_in_its_order_is_refused_by_what_is_wrong(
    name: str,
    make: Make,
    edit: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    message: str,
    tmp_path: Path,
    cfg: params.Data,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = small(name, monkeypatch)
    path = place(row, Path(cfg.root))
    make(path, *edit(pixels(name), cells(name)))
    with pytest.raises(UserError, match=message) as e:
        prepare.run(name, cfg, tmp_path / "out")
    assert str(e.value).startswith(f"{path}: ")
    assert f"place {row.archives[0].file} as published" in str(e.value)
    assert not (tmp_path / "out").exists()


def test_a_shuffled_file_without_factors_is_known_by_its_checksum(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pixels("MPI3Dtoy")
    np.savez(tmp_path / "good.npz", images=images)
    good = hashlib.md5((tmp_path / "good.npz").read_bytes()).hexdigest()
    row = small("MPI3Dtoy", monkeypatch, checksum=f"md5:{good}")
    path = place(row, Path(cfg.root))
    np.savez(path, images=images[::-1])
    with pytest.raises(UserError, match=rf"wrong md5: expected {good}, met .*nothing else tells the order"):
        prepare.run("MPI3Dtoy", cfg, tmp_path / "out")
    np.savez(path, images=images)
    prepare.run("MPI3Dtoy", cfg, tmp_path / "out")
    assert np.array_equal(np.load(tmp_path / "out" / "images_train.npy"), images)


def test_a_file_of_other_contents_is_refused_by_what_it_holds(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(small("MPI3Dtoy", monkeypatch), Path(cfg.root))
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(UserError, match=r"no images\.npy, but pictures\.npy"):
        prepare.run("MPI3Dtoy", cfg, tmp_path / "out")
    path = place(small("Shapes3D", monkeypatch), Path(cfg.root))
    dsprites(path, pixels("dSprites"), cells("dSprites"))
    with pytest.raises(UserError, match=r"no images and no labels, but imgs, latents"):
        prepare.run("Shapes3D", cfg, tmp_path / "out")


def lose_one(folder: Path) -> None:
    (folder / "car_004_mesh.mat").unlink()


def turn_axes(folder: Path) -> None:
    mesh = scipy.io.loadmat(folder / "car_002_mesh.mat")["im"]
    scipy.io.savemat(folder / "car_002_mesh.mat", {"im": mesh.swapaxes(3, 4)})


def cut_one(folder: Path) -> None:
    (folder / "car_003_mesh.mat").write_bytes((folder / "car_003_mesh.mat").read_bytes()[:500])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lose_one, r"holds 4 files \*\.mat; the whole grid has 5, one for each type"),
        (turn_axes, r"car_002_mesh\.mat: im is uint8, \(8, 8, 3, 4, 3\); needed is uint8, \(H, W, 3, 3, 4\)"),
        (cut_one, r"car_003_mesh\.mat cannot be read"),
    ],
)
def test_cars_that_are_not_whole_are_named(
    edit: Callable[[Path], None], message: str, tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place(small("Cars3D", monkeypatch), Path(cfg.root))
    cars(folder, pixels("Cars3D"), cells("Cars3D"))
    edit(folder)
    with pytest.raises(UserError, match=message):
        prepare.run("Cars3D", cfg, tmp_path / "out")


@pytest.mark.parametrize(("name", "make"), [("Shapes3D", shapes3d), ("MPI3Dreal", mpi3d_compressed)])
@pytest.mark.parametrize("spoil", ["cut", "flip"])
def test_a_damaged_file_is_one_message_and_no_image_of_a_grid_is_left_out(
    name: str, make: Make, spoil: str, tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(small(name, monkeypatch), Path(cfg.root))
    make(path, pixels(name), cells(name))
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(whole[:half] if spoil == "cut" else whole[:half] + bytes(200) + whole[half + 200 :])
    with pytest.raises(UserError, match=r": cannot be read \(.*Delete it so that it is fetched again") as e:
        prepare.run(name, dataclasses.replace(cfg, max_broken=1.0), tmp_path / "out")
    assert str(path) in str(e.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


# ------------------------------------------------------------------------------------------------------- fetching
@pytest.mark.parametrize("placed", [True, False])
def test_without_h5py_there_is_one_message_and_no_download(
    placed: bool, tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch, web: Web
) -> None:
    row = small("Shapes3D", monkeypatch, web.url("3dshapes.h5"))
    if placed:
        shapes3d(place(row, Path(cfg.root)), pixels("Shapes3D"), cells("Shapes3D"))
    found = published_grids.importlib.util.find_spec
    monkeypatch.setattr(published_grids.importlib.util, "find_spec", lambda n: None if n == "h5py" else found(n))
    with pytest.raises(UserError, match=r"Shapes3D: 3dshapes\.h5 .*h5py is not installed: `pip install h5py`"):
        prepare.run("Shapes3D", cfg, tmp_path / "out")
    assert web.requests == []
    assert not (tmp_path / "out").exists()


def test_a_file_is_fetched_verified_and_then_kept(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch, web: Web
) -> None:
    dsprites(tmp_path / "made.hdf5", pixels("dSprites"), cells("dSprites"))
    web.files["x.hdf5"] = (tmp_path / "made.hdf5").read_bytes()
    checksum = f"sha256:{hashlib.sha256(web.files['x.hdf5']).hexdigest()}"
    row = small("dSprites", monkeypatch, web.url("x.hdf5"), checksum)
    for _ in range(2):
        prepare.run("dSprites", cfg, tmp_path / "out")
    assert len(web.requests) == 1
    assert (Path(cfg.root) / "dsprites" / row.archives[0].file).read_bytes() == web.files["x.hdf5"]


def test_cars_are_unpacked_from_among_the_archives_other_folders(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch, web: Web
) -> None:
    top = tmp_path / "data"
    (top / "sprites").mkdir(parents=True)
    (top / "sprites" / "other.mat").touch()
    cars(top / "cars", pixels("Cars3D"), cells("Cars3D"))
    web.files["x.tar.gz"] = make_tar(tmp_path / "x.tar.gz", top, "data", "w:gz").read_bytes()
    checksum = f"md5:{hashlib.md5(web.files['x.tar.gz']).hexdigest()}"
    small("Cars3D", monkeypatch, web.url("x.tar.gz"), checksum)
    prepare.run("Cars3D", cfg, tmp_path / "out")
    assert np.array_equal(np.load(tmp_path / "out" / "images_train.npy"), pixels("Cars3D"))
    with tarfile.open(Path(cfg.root) / "cars3d" / "nips2015-analogy-data.tar.gz") as kept:
        assert "data/cars/list.txt" in kept.getnames()


def test_what_to_place_by_hand_is_the_published_file_alone(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = small("MPI3Dreal", monkeypatch)
    with pytest.raises(UserError, match="To use MPI3Dreal, place this file:") as e:
        prepare.run("MPI3Dreal", cfg, tmp_path / "out")
    assert str(Path(cfg.root) / "mpi3d" / row.archives[0].file) in str(e.value)
    assert "class folders" not in str(e.value)
