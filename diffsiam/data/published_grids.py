"""Grids of factors as they are published: Shapes3D, MPI3D, Cars3D, dSprites. Each is read whole, or refused by what is
wrong: factors follow from a row's number, so one image that is missing or misplaced would falsify every score.

h5py and scipy are imported only for the files that need them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from diffsiam.data import download, readers
from diffsiam.data.grid import Grid
from diffsiam.data.readers import Source
from diffsiam.data.sources import DataSet
from diffsiam.errors import UserError

_BLOCK = 1_024  # images, about, that are read at once from a compressed file
_ENTRY = "images.npy"  # of MPI3D's npz
_LOCAL_HEADER = 30  # bytes before an entry's name in a zip

Row = Callable[[int], np.ndarray]  # the i-th image: uint8, (H, W, 3) or (H, W); safe to call from several threads


@dataclasses.dataclass(frozen=True)
class Hdf5:
    """What an HDF5 file calls its images and their factors, and the value of white."""

    images: str
    factors: str
    white: int


_HDF5 = {"Shapes3D": Hdf5("images", "labels", 255), "dSprites": Hdf5("imgs", "latents/classes", 1)}


def check_packages(row: DataSet) -> None:
    """A `UserError` where the package is missing that ``row``'s file is read with; before it is fetched."""
    if row.name in _HDF5 and importlib.util.find_spec("h5py") is None:
        file = row.archives[0].file
        raise UserError(f"{row.name}: {file} is an HDF5 file, and h5py is not installed: `pip install h5py`.")


def read(row: DataSet, root: Path) -> Source:
    """One of them, from its place under ``root``.

    Raises:
        UserError: h5py is missing; the file is damaged, or not the whole grid in its order.
    """
    check_packages(row)
    (place,) = row.archives[0].parts(root)
    try:
        if row.name in _HDF5:
            image = hdf5(place, row)
        elif row.name == "Cars3D":
            image = cars(place, row)
        else:
            image = mpi3d(place, row)
    except UserError as e:
        raise UserError(f"{place}: {e} {row.name} is read whole: place {row.archives[0].file} as published.") from None
    except Exception as e:  # readers raise anything for a damaged file
        raise _damaged(place, e) from None

    def load(i: int) -> Image.Image:
        try:
            return Image.fromarray(image(i)).convert("RGB")
        except Exception as e:  # not of one image, which `data.max_broken` might allow to leave out
            raise _damaged(place, e) from None

    return readers.grid(row, load, {"kind": "grid", "file": row.archives[0].file})


def hdf5(path: Path, row: DataSet) -> Row:
    """Images beside which their factors stand, in any unit: `check_order` compares them."""
    import h5py

    layout = _HDF5[row.name]
    file = h5py.File(path)  # open for as long as images are read
    if missing := [name for name in (layout.images, layout.factors) if name not in file]:
        raise UserError(f"it has no {' and no '.join(missing)}, but {', '.join(file)}.")
    images = file[layout.images]
    _check_images(images.shape, images.dtype, row)
    check_order(file[layout.factors][:], Grid.named(row.factors))
    together = images.chunks[0] if images.chunks else 1  # images that can only be decompressed together
    bright = np.uint8(255 // layout.white)
    return _in_blocks(lambda start, stop: images[start:stop] * bright, together * max(1, _BLOCK // together))


def check_order(factors: np.ndarray, expected: Grid) -> None:
    """A `UserError` unless the rows of ``factors`` (N, columns) are those of ``expected``: a value stands for its rank
    in its column, and columns of one value are no factors."""
    columns = [np.unique(column, return_inverse=True) for column in factors.T]
    varied = [(len(values), rank) for values, rank in columns if len(values) > 1]
    sizes, ranks = tuple(size for size, _ in varied), [rank for _, rank in varied]
    if sizes != expected.sizes or len(factors) != expected.size:
        raise UserError(
            f"its {len(factors)} rows of factors take {_listed(sizes)} values; the whole grid has {expected.size}, "
            f"with {_listed(expected.sizes)} ({', '.join(expected.names)})."
        )
    met, rows = np.stack(ranks, axis=-1), expected.factors(np.arange(expected.size))
    if len(wrong := np.flatnonzero((met != rows).any(axis=1))):
        first = wrong[0]
        raise UserError(
            f"{len(wrong)} of {len(met)} rows are out of the grid's order, the first row {first}: its factors are "
            f"{met[first].tolist()}, not {rows[first].tolist()} ({', '.join(expected.names)})."
        )


def mpi3d(path: Path, row: DataSet) -> Row:
    """Images without factors: only the file's checksum tells that they are in their order. Memory-mapped where they lie
    in the zip as they are; read as a stream where they are compressed."""
    archive = zipfile.ZipFile(path)
    if _ENTRY not in archive.namelist():
        raise UserError(f"it has no {_ENTRY}, but {', '.join(archive.namelist())}.")
    stream = archive.open(_ENTRY)
    shape, fortran_order, dtype = _header(stream)
    _check_images(shape, dtype, row)
    if fortran_order:
        raise UserError("its images lie in Fortran's order.")
    try:
        download.verify(path, row.archives[0].checksum)
    except UserError as e:
        raise UserError(f"{e} It names no factors, so nothing else tells the order of its images.") from None
    begin, size = stream.tell(), int(np.prod(shape[1:]))
    entry = archive.getinfo(_ENTRY)
    if entry.compress_type == zipfile.ZIP_STORED:
        mapped = np.memmap(path, np.uint8, "r", offset=_data_offset(path, entry) + begin, shape=shape)
        return lambda i: mapped[i]

    def block(start: int, stop: int) -> np.ndarray:
        stream.seek(begin + start * size)
        return np.frombuffer(stream.read(min(stop, shape[0]) * size - start * size), np.uint8).reshape(-1, *shape[1:])

    return _in_blocks(block, _BLOCK)


def cars(folder: Path, row: DataSet) -> Row:
    """A file for each type of car, in the order of their names: ``im``, (H, W, 3, azimuth, elevation). All are held in
    memory (0.9 GB), for neighbours in the grid are of different files."""
    from scipy.io import loadmat

    whole = Grid.named(row.factors)
    elevations, azimuths, types = whole.sizes
    files = sorted(path for path in folder.glob("*.mat") if not path.name.startswith("."))
    if len(files) != types:
        raise UserError(f"it holds {len(files)} files *.mat; the whole grid has {types}, one for each type.")
    meshes = []
    for file in files:
        try:
            mesh = loadmat(file, variable_names=["im"])["im"]
        except Exception as e:
            raise UserError(f"{file.name} cannot be read ({e}).") from None
        if mesh.dtype != np.uint8 or mesh.shape[2:] != (3, azimuths, elevations):
            raise UserError(
                f"{file.name}: im is {mesh.dtype}, {mesh.shape}; needed is uint8, (H, W, 3, {azimuths}, {elevations})."
            )
        meshes.append(mesh)

    def image(i: int) -> np.ndarray:
        elevation, azimuth, kind = whole.factors(i)
        return meshes[kind][..., azimuth, elevation]

    return image


def _check_images(shape: tuple[int, ...], dtype: np.dtype[Any], row: DataSet) -> None:
    if dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (3,)):
        raise UserError(f"its images are {dtype}, {shape}; needed is uint8, (N, H, W) or (N, H, W, 3).")
    if shape[0] != row.train:
        sizes = " x ".join(f"{name} {values}" for name, values in row.factors)
        raise UserError(f"it holds {shape[0]} images; the whole grid has {row.train}: {sizes}.")


def _in_blocks(read: Callable[[int, int], np.ndarray], size: int) -> Row:
    """Single images of an array that is read ``size`` images at a time: ``read`` takes a start and a stop."""
    lock = threading.Lock()
    block = functools.lru_cache(maxsize=2)(lambda k: read(k * size, (k + 1) * size))  # threads work on two at most

    def image(i: int) -> np.ndarray:
        with lock:
            return block(i // size)[i % size]

    return image


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array whose .npy begins at ``file``'s place."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip's entry begin: its name and extra field are of other lengths than in the directory."""
    with open(path, "rb") as f:
        f.seek(entry.header_offset)
        name, extra = struct.unpack("<26x2H", f.read(_LOCAL_HEADER))
    return entry.header_offset + _LOCAL_HEADER + name + extra


def _listed(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes)) or "no"


def _damaged(place: Path, error: Exception) -> UserError:
    return UserError(f"{place}: cannot be read ({error}). Delete it so that it is fetched again, or copy it again.")
