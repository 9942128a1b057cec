"""Data sets of the generative half: CelebA with its attributes, FFHQ, LSUN Bedroom. They have no classes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from diffsiam.data import places, readers
from diffsiam.data.images import decode, decode_name, open_lmdb, reader
from diffsiam.data.readers import Source, Split, composed
from diffsiam.errors import UserError

_CELEBA_PARTS = {"0": "train", "1": "val", "2": "test"}  # of list_eval_partition.txt
# PDAE's crop of an aligned face of 178x218: a square of 128 around (89, 121); left, upper, side as shares.
_CELEBA_CROP = (25 / 178, 57 / 218, 128 / 178)
_FFHQ_TRAIN = 6 / 7  # the published split: 60 000 of 70 000, by number
# The folders in which it is published, and "" for any other; the first that is there is read.
_FFHQ_COPIES = ("images1024x1024", "", "thumbnails128x128", "in-the-wild-images")


def celeba(root: Path) -> Source:
    """``<root>/celeba/`` in torchvision's layout."""
    folder = root / "celeba"
    return _celeba(
        lambda name: (folder / name).read_text(),
        lambda name: decode(folder / "img_align_celeba" / name),
        {"kind": "torchvision", "folder": "celeba"},
    )


def celeba_tar(root: Path) -> Source:
    """``<root>/CelebA.tar`` with torchvision's layout inside."""
    path = root / "CelebA.tar"
    where = {"/".join(parts[-2:]): place for parts, place in readers.tar_files(path)}

    def read(name: str) -> bytes:
        if name not in where:
            raise FileNotFoundError(f"{path} holds no {name}")
        return readers.tar_read(path, where[name])

    try:
        return _celeba(
            lambda name: read(f"celeba/{name}").decode(),
            lambda name: decode(read(f"img_align_celeba/{name}")),
            {"kind": "tar", "file": path.name},
        )
    except (OSError, LookupError, ValueError) as e:
        raise UserError(
            f"{path}: cannot be read as CelebA in torchvision's layout: {e}. Needed in it: celeba/ with "
            "img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt."
        ) from None


def _celeba(text: Callable[[str], str], image: Callable[[str], Image.Image], origin: dict[str, Any]) -> Source:
    _, header, *rows = text("list_attr_celeba.txt").splitlines()
    attributes = [name.replace("_", " ") for name in header.split()]
    signs = {name: values for name, *values in map(str.split, rows)}
    names: dict[str, list[str]] = {part: [] for part in _CELEBA_PARTS.values()}
    for line in text("list_eval_partition.txt").splitlines():
        name, part = line.split()
        names[_CELEBA_PARTS[part]].append(name)
    splits = {
        part: _split(members, lambda name: crop_face(image(name)), np.array([signs[m] for m in members], np.int64) > 0)
        for part, members in names.items()
    }
    return Source(["face"], splits, origin, attributes)


def crop_face(image: Image.Image) -> Image.Image:
    """The square around the face of an aligned CelebA image of any size."""
    left, upper, side = (
        round(s * n) for s, n in zip(_CELEBA_CROP, (image.width, image.height, image.width), strict=True)
    )
    return image.crop((left, upper, left + side, upper + side))


def ffhq(root: Path) -> Source:
    """``<root>/ffhq/``: images at any depth, one per number; by number, the first six sevenths train, the rest test.

    Where several of the published folders are there, which hold the same faces, one of them is read.
    """
    folder = root / "ffhq"
    accept = readers.images_below(folder)
    copies: dict[str, list[str]] = {name: [] for name in _FFHQ_COPIES}
    for name in (member for member in places.walk(folder) if not member.endswith("/") and accept(member)):
        copies[next((part for part in name.split("/") if part in _FFHQ_COPIES), "")].append(name)
    read, *rest = [name for name, held in copies.items() if held] or [""]
    if rest:
        said = [f"{name or 'others'} ({len(copies[name])} images)" for name in (read, *rest)]
        print(f"{folder}: read is {said[0]}; left out, other copies: {', '.join(said[1:])}", file=sys.stderr)
    names = [name for _, name in sorted(_numbered(folder, copies[read]).items())]
    count = round(_FFHQ_TRAIN * len(names))
    if not 0 < count < len(names):
        raise UserError(f"{folder}: {len(names)} images; at least 2 are needed.")
    splits = {
        part: _split(members, lambda name: decode(folder / name))
        for part, members in {"train": names[:count], "test": names[count:]}.items()
    }
    return Source(["face"], splits, {"kind": "folder", "folder": folder.name})


def _numbered(folder: Path, names: Sequence[str]) -> dict[int, str]:
    """Number -> image: the digits that its name ends with."""
    numbered: dict[int, str] = {}
    for name in names:
        digits = re.search(r"([0-9]+)$", PurePosixPath(name).stem)
        if digits is None:
            raise UserError(
                f"{folder}: {name} has no number, which tells train from test. Name it 00000.png and the like, or move "
                "it away; a split of your own belongs in class folders, FFHQ/{train,test}/face/, and other images get "
                "a name in section datasets of params.yaml."
            )
        if (other := numbered.setdefault(int(digits[1]), name)) != name:
            raise UserError(f"{folder}: {other} and {name} have the same number. Remove one of them.")
    return numbered


def bedroom(root: Path) -> Source:
    """``<root>/bedroom_train_lmdb`` and ``bedroom_val_lmdb`` as LSUN publishes them; val is test."""
    splits = {}
    for part, folder in (("train", "bedroom_train_lmdb"), ("test", "bedroom_val_lmdb")):
        environment = open_lmdb(root / folder)
        with environment.begin() as transaction:
            names = [decode_name(key) for key in transaction.cursor().iternext(values=False)]
        environment.close()
        splits[part] = _split(names, _loader(root / folder))
    return Source(["bedroom"], splits, {"kind": "lmdb", "folder": "bedroom_train_lmdb"})


def _loader(place: Path) -> Callable[[str], Image.Image]:
    read = reader(place)
    return lambda name: decode(read(name))


def _split(names: Sequence[str], load: Callable[[str], Image.Image], attributes: np.ndarray | None = None) -> Split:
    rows = None if attributes is None else attributes.astype(np.uint8)
    return Split(names, np.zeros(len(names), np.int64), lambda i: load(names[i]), rows)


def with_attributes(source: Source, table: Path) -> Source:
    """``source`` with the attributes of a CSV: a header ``image,<name>,...``, a row for every image with its name and
    one number per attribute; it is present where the number is above 0.

    Raises:
        UserError: not such a table, or an image has no row, or two.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(table, dtype={"image": str}, encoding_errors="surrogateescape").set_index("image")
        values = frame.to_numpy(np.float32)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"{table}: not a table of attributes ({e}). Needed: a header image,<name>,... and numbers."
        ) from None
    rows = {composed(str(name)): i for i, name in enumerate(frame.index)}
    if len(rows) < len(frame) or not np.isfinite(values).all():
        twice = frame.index[frame.index.duplicated() | ~np.isfinite(values).all(axis=1)]
        raise UserError(
            f"{table}: {twice[0]} stands there twice, or lacks a number. Needed is one row for each image, without "
            "empty cells."
        )
    splits = {}
    for part, split in source.splits.items():
        if missing := [name for name in split.names if composed(name) not in rows]:
            raise UserError(f"{table}: no row for {len(missing)} of {len(split)} {part} images, such as {missing[0]}.")
        present = values[[rows[composed(name)] for name in split.names]] > 0
        splits[part] = Split(split.names, split.labels, split.load, present.astype(np.uint8))
    return Source(source.classes, splits, source.origin, [composed(str(name)) for name in frame.columns])
