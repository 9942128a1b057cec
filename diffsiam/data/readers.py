"""Images with labels from class folders, or from one tar of class folders: `<split>/<class>/<image>`."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffsiam.data.images import decode
from diffsiam.errors import UserError

SPLITS = ("train", "val", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled images that are read one by one.

    Attributes:
        names: what messages call each image: its path relative to the source.
        labels: int64, (N,), indices into the source's classes.
        load: the i-th image, RGB; safe to call from several threads. Raises what Pillow raises on a bad file.
        attributes: uint8 in {0, 1}, (N, A), where the source has attributes.
    """

    names: Sequence[str]
    labels: np.ndarray
    load: Callable[[int], Image.Image]
    attributes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that was found: its class names, its splits (train, test and, where it has one, val), what
    meta.json says about its origin, and the names of its attributes."""

    classes: Sequence[str]
    splits: Mapping[str, Split]
    origin: Mapping[str, Any]
    attributes: Sequence[str] = ()


def files(root: Path, names: Sequence[str], labels: Sequence[int] | np.ndarray) -> Split:
    """A split of image files; ``names`` are relative to ``root``."""
    return Split(names, np.asarray(labels, np.int64), lambda i: decode(root / names[i]))


def stratified(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a share of the items of every class, leaving at least one of each.

    Each class gives ``fraction`` of its items rounded down; what rounding lost in total goes, one item each,
    to the classes that lost most (largest remainder), ties by lot.

    Args:
        labels: integer, (N,).
        fraction: share to draw, in (0, 1).
        rng: consumed in class order.
    Returns:
        Sorted indices into ``labels``.
    """
    classes, counts = np.unique(labels, return_counts=True)
    # Rounded, so that 0.2 * 15 is 3 and not a hair above or below it.
    quota = np.round(fraction * counts, 9)
    take = np.floor(quota).astype(np.int64)
    missing = round(float(quota.sum())) - int(take.sum())
    take[np.lexsort((rng.random(len(classes)), take - quota))[:missing]] += 1
    take = np.minimum(take, counts - 1)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, take, strict=True)]
    return np.sort(np.concatenate(chosen))


def class_folders(name: str, root: Path) -> Source:
    """Read ``<root>/<name>/{train,test}/<class>/*``, and ``val`` where it is there.

    Raises:
        UserError: a split folder is missing, a class is empty, or the splits' class names differ.
    """
    top = root / name
    found: dict[str, dict[str, list[str]]] = {}
    for split in SPLITS:
        if (top / split).is_dir():
            folders = [d for d in (top / split).iterdir() if d.is_dir() and not d.name.startswith(".")]
            found[split] = {d.name: _images(p.name for p in d.iterdir()) for d in folders}
    return _source(
        name, str(top), found, {"kind": "class folders", "folder": name}, lambda member: decode(top / member)
    )


def tar(name: str, root: Path) -> Source:
    """Read ``<root>/<name>.tar``, which holds ``[<name>/]{train,test}/<class>/*``, without unpacking it.

    Raises:
        UserError: not a whole uncompressed tar, a member that leaves the folder or is no plain file, or what
            `class_folders` raises.
    """
    path = root / f"{name}.tar"
    folders: set[tuple[str, str]] = set()
    where: dict[str, Place] = {}  # a name met twice counts once, the last
    for member, parts in _members(path):
        match parts[1:] if parts[:1] == (name,) else parts:
            case (split, folder) if member.isdir():
                folders.add((split, folder))
            case (split, folder, image) if member.isfile() and _images([image]):
                folders.add((split, folder))
                where[f"{split}/{folder}/{image}"] = Place(member.offset_data, member.size)
    found: dict[str, dict[str, list[str]]] = {}
    for split, folder in folders:
        if split in SPLITS and not folder.startswith("."):
            found.setdefault(split, {})[folder] = []
    for key in where:
        split, folder, image = key.split("/")
        if folder in found.get(split, {}):
            found[split][folder].append(image)

    return _source(
        name, str(path), found, {"kind": "tar", "file": path.name}, lambda key: decode(tar_read(path, where[key]))
    )


class Place(NamedTuple):
    """Where a member's bytes lie in a tar."""

    offset: int
    size: int


def tar_files(path: Path) -> Iterable[tuple[tuple[str, ...], Place]]:
    """The files of an uncompressed tar: parts of the name, and where the bytes are.

    Raises:
        UserError: not a whole uncompressed tar, or a member that leaves the folder or is no plain file.
    """
    return ((parts, Place(m.offset_data, m.size)) for m, parts in _members(path) if m.isfile())


def tar_read(path: Path, place: Place) -> bytes:
    """The bytes of one member."""
    with open(path, "rb") as f:
        f.seek(place.offset)
        return f.read(place.size)


def _members(path: Path) -> Iterable[tuple[tarfile.TarInfo, tuple[str, ...]]]:
    """The members of an uncompressed tar with the parts of their names; refuses what could reach outside."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                    raise UserError(
                        f"{path}: member {member.name!r} is refused: only plain files and folders with "
                        "relative names without '..' are read. Make the tar again from the folder itself."
                    )
                yield member, name.parts
        with open(path, "rb") as f:  # tarfile takes damage between members for the end
            f.seek(archive.offset)
            if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
    except (tarfile.TarError, OSError) as e:
        raise UserError(
            f"{path}: not a whole, uncompressed tar ({e}). Copy it again, or make it with `tar -cf`."
        ) from None


def _images(names: Iterable[str]) -> list[str]:
    return sorted(n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))


def _source(
    name: str,
    where: str,
    found: Mapping[str, Mapping[str, list[str]]],
    origin: Mapping[str, Any],
    load: Callable[[str], Image.Image],
) -> Source:
    """Check ``found`` (split -> class -> image names) and turn it into a source."""
    for split in ("train", "test"):
        if not found.get(split):
            raise UserError(
                f"{where}: no {split} images. Needed: {name}/train/<class>/* and {name}/test/<class>/*, * "
                f"ending in {', '.join(SUFFIXES)}; val/ is optional."
            )
    classes = sorted(found["train"])
    for split, folders in found.items():
        if unknown := sorted(set(folders) - set(classes)):
            raise UserError(_differ(where, f"{split} has classes that train has not", unknown))
        if empty := sorted(c for c, images in folders.items() if not images):
            raise UserError(_differ(where, f"{split} has classes without a single image", empty))
    if missing := sorted(set(classes) - set(found["test"])):
        raise UserError(_differ(where, "train has classes that test has not", missing))
    splits = {}
    for split, folders in found.items():
        pairs = [(f"{split}/{c}/{image}", k) for k, c in enumerate(classes) for image in sorted(folders.get(c, []))]
        splits[split] = _split(pairs, load)
    return Source(classes, splits, origin)


def _split(pairs: Sequence[tuple[str, int]], load: Callable[[str], Image.Image]) -> Split:
    names = [member for member, _ in pairs]
    return Split(names, np.array([label for _, label in pairs], np.int64), lambda i: load(names[i]))


def _differ(where: str, what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{where}: {what}: {len(names)} ({shown}). Complete the folders, or remove the classes from all."
