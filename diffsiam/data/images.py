"""Single images, and the training images of a prepared data set: an array, or decoded as they are used.

Three million bedrooms are not copied to an array. Their ``images_train.npy`` holds names (bytes, (N,)) in place of
pixels, and meta.json says in which folder or LMDB under `data.root` they lie.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from diffsiam import runtime
from diffsiam.errors import UserError

if TYPE_CHECKING:
    import lmdb
    import torch

Images: TypeAlias = "torch.Tensor | Stream"

WORKERS = min(8, os.cpu_count() or 1)  # threads: decoding and resizing leave Python's lock
# What Pillow raises for a file that is missing, cut off or no image.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode(data: bytes | Path) -> Image.Image:
    """The RGB image of an encoded file; an alpha channel is dropped, an orientation tag ignored."""
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return image.convert("RGB")


def resize(image: Image.Image, size: int) -> Image.Image:
    """Bicubic, antialiased, of the short side to ``size`` pixels, then the central square; rounding as in torchvision.
    An image of that size already comes back as it is."""
    width, height = image.size
    short = min(width, height)
    if short != size:
        width, height = (size * width // short, size * height // short)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, upper, left + size, upper + size)) if width != height else image


def open_images(path: Path, root: Path) -> Images:
    """The images of a prepared data set, indexed by tensors of indices or by slices: uint8, (N, side, side, 3).

    Args:
        path: ``images_train.npy`` or ``images_test.npy``, beside its meta.json.
        root: `data.root`, where streamed images lie.
    Raises:
        UserError: the images are streamed, and not under ``root``.
    """
    import torch

    array = runtime.read_array(path)
    if array.dtype == np.uint8:
        return torch.from_numpy(array)
    meta = runtime.read_json(path.with_name("meta.json"))
    return Stream(array, reader(root / meta["source"]["folder"]), meta["image_size"])


class Stream:
    """Images that are read, decoded and resized when they are asked for, like a tensor of the same shape."""

    def __init__(self, names: np.ndarray, read: Callable[[str], bytes], size: int) -> None:
        self.names, self.read = names, read
        self.shape = (len(names), size, size, 3)
        self.pool = ThreadPoolExecutor(WORKERS)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
        import torch

        names = self.names[index if isinstance(index, slice) else index.numpy()]
        return torch.from_numpy(np.stack(list(self.pool.map(self._pixels, names))))

    def _pixels(self, name: bytes) -> np.ndarray:
        try:
            return np.asarray(resize(decode(self.read(name.decode())), self.shape[1]))
        except BROKEN as e:
            raise UserError(
                f"image {name.decode()}: cannot be read ({e}). Replace it, or prepare the data set again without it."
            ) from None


def reader(place: Path) -> Callable[[str], bytes]:
    """Name to encoded image, from a folder or, where data.mdb lies in it, an LMDB; usable from several threads."""
    if not place.is_dir():
        raise UserError(
            f"{place}: no such folder; the images are read from it in training. Set data.root to its parent."
        )
    if not (place / "data.mdb").is_file():
        return lambda name: (place / name).read_bytes()
    database = functools.cache(open_lmdb)
    lock = threading.Lock()

    def read(name: str) -> bytes:
        with lock:  # an environment may be opened only once in a process
            environment = database(place)
        with environment.begin(buffers=False) as transaction:
            data = transaction.get(name.encode())
        if data is None:
            raise OSError("no such key")
        return data

    return read


def open_lmdb(place: Path) -> lmdb.Environment:
    """Open an LMDB for reading, without its lock file: it may lie on a read-only disk."""
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{place}: is an LMDB, and the package lmdb is not installed: `pip install lmdb`.") from None
    try:
        return lmdb.open(str(place), readonly=True, lock=False, readahead=False, max_readers=WORKERS)
    except lmdb.Error as e:
        raise UserError(f"{place}: not a readable LMDB ({e}). Unpack it again.") from None
