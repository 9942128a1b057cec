"""Single images, and the training images of a prepared data set: an array, or decoded as they are used.

Three million bedrooms are not copied to an array. Their ``images_train.npy`` holds names (bytes, (N,)) in place of
pixels, and meta.json says in which folder or LMDB under `data.root` they lie.
"""

from __future__ import annotations

import functools
import io
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from diffsiam import runtime
from diffsiam.errors import UserError

if TYPE_CHECKING:
    import lmdb
    import torch

Images: TypeAlias = "torch.Tensor | Stream"

WORKERS = min(8, os.cpu_count() or 1)  # threads: decoding and resizing leave Python's lock
# Of images that Pillow, or some build of it, does not read.
_FOREIGN = frozenset((".avif", ".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".nef", ".arw"))
_LFS = b"version https://git-lfs.github.com/"
_PAGE = (b"<!doctype html", b"<html")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags, and a value
_SHOWN = 5  # of names and of causes in a message

T = TypeVar("T")


class BrokenImage(Exception):
    """An image that cannot be had. Its text is the cause, the same for all images with the same cause."""


def attempt(make: Callable[[], T]) -> T:
    """What ``make`` makes of one image; whatever reading, decoding or resizing raises is a `BrokenImage`: decoders
    raise anything for a damaged file."""
    try:
        return make()
    except (BrokenImage, UserError):
        raise
    except Exception as e:
        raise BrokenImage(_cause(e)) from e


def causes(broken: Iterable[tuple[str, str]]) -> str:
    """Names and causes of broken images in one line, by cause: ``2 empty: a.png, b.png; 1 missing: c.png``."""
    grouped = defaultdict(list)
    for name, cause in broken:
        grouped[cause].append(name)
    ordered = sorted(grouped.items(), key=lambda item: -len(item[1]))
    said = [
        f"{len(names)} {cause}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for cause, names in ordered[:_SHOWN]
    ]
    if rest := ordered[_SHOWN:]:
        said.append(f"{sum(len(names) for _, names in rest)} for {len(rest)} other causes")
    return "; ".join(said)


def _cause(error: Exception, data: bytes | None = None) -> str:
    """Why an image could not be read; ``data``: its file's content, where that was read."""
    match error:
        case FileNotFoundError():
            return "missing"
        case PermissionError():
            return "not readable (permission denied)"
        case Image.DecompressionBombError():
            return f"larger than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels (scale down)"
        case MemoryError():
            return "too large for the memory"
        case OSError(strerror=str(reason)):
            return f"not readable ({reason})"
    if data is not None and not data.strip(b"\0"):
        return "of zeros alone" if data else "empty"
    if data is not None and data.startswith(_LFS):
        return "Git LFS pointer in place of the image (run `git lfs pull`)"
    if data is not None and data[:64].lstrip().lower().startswith(_PAGE):
        return "web page in place of the image"
    if isinstance(error, UnidentifiedImageError):
        return "of no format that Pillow reads (convert to PNG or JPEG)"
    # Without the numbers: how many bytes are missing is no other cause.
    return f"damaged ({re.sub(r'[0-9]+', '..', str(error)) or type(error).__name__})"


def is_image(name: str, open_file: Callable[[], IO[bytes]]) -> bool:
    """Whether a file is to be read as an image: by its suffix, or, where that says nothing, by how it begins.

    Suffixes of formats that Pillow lacks count too, so that such images are refused by name and not passed over.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _FOREIGN or suffix in _suffixes():
        return True
    try:
        with open_file() as file, Image.open(file):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # of whatever kind: it is no image
        return False


@functools.cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN)


def decode(data: bytes | Path, *, upright: bool = False) -> Image.Image:
    """The RGB image of an encoded file. An alpha channel is dropped; 16 bits are scaled to 8.

    Args:
        upright: turn it as its orientation tag says, which torchvision's data sets, and so ours, do not.
    Raises:
        BrokenImage: it is not a whole image, or of a mode whose range of brightness is not known.
        OSError: the file cannot be read.
    """
    encoded = data if isinstance(data, bytes) else data.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except BrokenImage:
        raise
    except Exception as e:
        raise BrokenImage(_cause(e, encoded)) from e


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` of any of Pillow's modes as RGB; Pillow itself clips more than 8 bits in place of scaling them.

    Raises:
        BrokenImage: 32-bit integers or floats, of which no file says what is white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # I: of 16 bits there
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        scaled = np.rint(np.asarray(image) * np.float32(255 / (2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1)))
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # of which Pillow turns 8 bits alone
            scaled = 255 - scaled
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BrokenImage(f"of mode {image.mode}, whose white is not known (save as 8 or 16 bits, unsigned)")
    elif image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGB")


def resize(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Bicubic (or as ``resample`` says), antialiased, of the short side to ``size`` pixels, then the central square;
    rounding as in torchvision. An image of that size already comes back as it is."""
    width, height = image.size
    short = min(width, height)
    if short != size:
        width, height = (size * width // short, size * height // short)
        image = image.resize((width, height), resample)
    return image.crop(_middle(width, height, size)) if width != height else image


def _middle(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """The central square of ``size``, rounded as in torchvision."""
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return left, upper, left + size, upper + size


def enlarge(image: Image.Image, size: int) -> Image.Image:
    """Bilinear, both sides to ``int(1.15 size)`` whatever the image's shape, then the central square: what the code
    that the few-shot protocol comes from shows its encoders (CD-FSL, linusericsson/ssl-transfer)."""
    side = int(1.15 * size)
    return image.resize((side, side), Image.Resampling.BILINEAR).crop(_middle(side, side, size))


SIZED = {"short_side": resize, "few_shot": enlarge}  # by `params.Data.resize`


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
        text = decode_name(name)
        try:
            return attempt(lambda: np.asarray(resize(decode(self.read(text)), self.shape[1])))
        except BrokenImage as e:
            raise UserError(
                f"image {text}: cannot be read: {e}. Replace it, or prepare the data set again without it."
            ) from None


def encode_name(name: str) -> bytes:
    """The name of a streamed image as images_train.npy holds it: a file's name may be of any bytes."""
    return name.encode("utf-8", "surrogateescape")


def decode_name(name: bytes) -> str:
    """The inverse of `encode_name`."""
    return name.decode("utf-8", "surrogateescape")


def reader(place: Path) -> Callable[[str], bytes]:
    """Name to encoded image, from a folder or, where data.mdb lies in it, an LMDB; usable from several threads."""
    if not os.path.isdir(place):
        raise UserError(
            f"{place}: no such folder, or none that may be read; the images are read from it in training. Set "
            "data.root to its parent."
        )
    if not os.path.isfile(place / "data.mdb"):
        return lambda name: (place / name).read_bytes()
    database = functools.cache(open_lmdb)
    lock = threading.Lock()

    def read(name: str) -> bytes:
        with lock:  # an environment may be opened only once in a process
            environment = database(place)
        with environment.begin(buffers=False) as transaction:
            data = transaction.get(encode_name(name))
        if data is None:
            raise FileNotFoundError("no such key")
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
