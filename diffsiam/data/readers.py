"""Images with labels from class folders, or from one tar of class folders: `<split>/<class>/.../<image>`."""

from __future__ import annotations

import dataclasses
import sys
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ContainerIO import ContainerIO

from diffsiam import runtime
from diffsiam.data import places
from diffsiam.data.images import decode, is_image
from diffsiam.data.sources import DataSet
from diffsiam.errors import UserError

SPLITS = ("train", "val", "test")
_SHOWN = 5  # names in a message


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled images that are read one by one.

    Attributes:
        names: what messages call each image: its path relative to the source.
        labels: int64, (N,), indices into the source's classes.
        load: the i-th image, RGB; safe to call from several threads. What it raises on a bad file,
            `diffsiam.data.images.attempt` turns into a cause.
        attributes: uint8 in {0, 1}, (N, A), where the source has attributes.
        targets: float32, (N, T), where the source has continuous labels.
    """

    names: Sequence[str]
    labels: np.ndarray
    load: Callable[[int], Image.Image]
    attributes: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that was found: its class names, its splits (train, test and, where it has one, val; of a grid of
    factors train alone), what meta.json says about its origin, the names of its attributes and continuous labels."""

    classes: Sequence[str]
    splits: Mapping[str, Split]
    origin: Mapping[str, Any]
    attributes: Sequence[str] = ()
    targets: Sequence[str] = ()


def files(root: Path, names: Sequence[str], labels: Sequence[int] | np.ndarray) -> Split:
    """A split of image files; ``names`` are relative to ``root``."""
    return Split(names, np.asarray(labels, np.int64), lambda i: decode(root / names[i]))


def grid(row: DataSet, load: Callable[[int], Image.Image], origin: Mapping[str, Any]) -> Source:
    """A grid of factors: train is all of it, in its order; test is drawn from what is written of train."""
    names = [f"row {i}" for i in range(row.train)]
    return Source([row.name], {"train": Split(names, np.zeros(row.train, np.int64), load)}, origin)


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


def validation(labels: np.ndarray, fraction: float, how: str, seed: int, name: str) -> np.ndarray:
    """Sorted indices of the share of data set ``name``'s train images that choose the penalty.

    Args:
        how: ``stratified``, or ``uniform``: of all images, the first of NumPy's old shuffle, which is what
            linusericsson/ssl-transfer takes with its seed 0.
    """
    if how == "stratified":
        return stratified(labels, fraction, runtime.rng(seed, "validation", name))
    rows = np.arange(len(labels))
    np.random.RandomState(seed).shuffle(rows)
    return np.sort(rows[: int(fraction * len(labels))])


@dataclasses.dataclass(frozen=True)
class Files:
    """What lies in a folder or in a tar.

    Attributes:
        names: of files, and of folders with ``/`` behind them, as `places.walk` gives them.
        load: the image of a name, RGB.
        accept: whether a file is an image.
    """

    names: Sequence[str]
    load: Callable[[str], Image.Image]
    accept: Callable[[str], bool]


def folder(top: Path) -> Files:
    """The files of a folder."""
    return Files(list(places.walk(top)), lambda member: decode(top / member), images_below(top))


def class_folders(name: str, root: Path) -> Source:
    """Read ``<root>/<name>/{train,test}/<class>/**``, and ``val`` where it is there.

    Raises:
        UserError: a split folder is missing, a class is empty, the splits' class names differ, an image lies in no
            class, or a folder beside the splits is a split of another name.
    """
    top = root / name
    return _source(name, top, folder(top), {"kind": "class folders", "folder": name})


def images_below(top: Path) -> Callable[[str], bool]:
    """Whether a file is an image, by its path relative to ``top``."""
    return lambda member: is_image(member, lambda: open(top / member, "rb"))


def tar(name: str, root: Path) -> Source:
    """Read ``<root>/<name>.tar``, which holds ``[<name>/]{train,test}/<class>/**``, without unpacking it.

    Raises:
        UserError: not a whole uncompressed tar, a member that leaves the folder or is no plain file, or what
            `class_folders` raises.
    """
    path = root / f"{name}.tar"
    return _source(name, path, packed(path, name), {"kind": "tar", "file": path.name})


def packed(path: Path, top: str = "") -> Files:
    """The files of a tar, which is not unpacked; names below the folder ``top`` are without it."""
    where: dict[str, Place] = {}  # a name met twice counts once, the last
    folders: set[str] = set()
    for member, parts in _members(path):
        inner = parts[1:] if parts[:1] == (top,) else parts
        if not inner or any(map(places.hidden, inner)):
            continue
        if member.isdir():
            folders.add("/".join(inner) + "/")
        else:
            where["/".join(inner)] = Place(member.offset_data, member.size)

    return Files(
        sorted([*folders, *where]),
        lambda member: decode(tar_read(path, where[member])),
        lambda member: is_image(member, lambda: ContainerIO(open(path, "rb"), *where[member])),
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
                    kind = "a link" if member.issym() or member.islnk() else "a name or kind that could reach outside"
                    raise UserError(
                        f"{path}: member {member.name!r} is refused ({kind}): only plain files and folders with "
                        "relative names without '..' are read. Make the tar again, in the folder above that of the "
                        "images, with what the links point to in their place: "
                        f"`tar --dereference --hard-dereference -cf {path.name} {path.stem}`."
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


def by_class(members: Iterable[str], accept: Callable[[str], bool], top: str = "") -> dict[str, list[str]]:
    """Class -> its images, sorted, among ``members`` (paths as `places.walk` gives them): ``<top><class>/.../<image>``.

    Names of classes are compared, and given, in Unicode's composed form: macOS writes another.

    Args:
        accept: whether a file is an image.
    """
    found: dict[str, list[str]] = {}
    for member in members:
        folder, slash, inner = member.removeprefix(top).partition("/")
        if slash and member.startswith(top):
            images = found.setdefault(composed(folder), [])
            if inner and not inner.endswith("/") and accept(member):
                images.append(member)
    return {name: sorted(images, key=composed) for name, images in found.items()}


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC); bytes of a disk that are no UTF-8 as they are written: ``caf\\xe9``."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def _source(name: str, where: Path, files: Files, origin: Mapping[str, Any]) -> Source:
    """Sort ``files`` into splits and classes; refuse what is incomplete or would be passed over, say what else is."""
    members, accept = files.names, files.accept
    tops = {member[: member.find("/") + 1] or member for member in members}
    found = {split: by_class(members, accept, f"{split}/") for split in SPLITS if f"{split}/" in tops}
    beside = sorted(tops - {f"{split}/" for split in SPLITS})
    for split in ("train", "test"):
        if not found.get(split):
            raise UserError(
                f"{where}: no {split} images. Needed: {name}/train/<class>/* and {name}/test/<class>/*; val/ is "
                f"optional. Found: {shown([*(f'{s}/' for s in found), *beside]) or 'nothing'}."
            )
    check_classes(where, found)
    used = {image for folders in found.values() for images in folders.values() for image in images}
    rest = [m for m in members if m not in used and not m.endswith("/") and m.split("/")[0] in SPLITS]
    if loose := [member for member in rest if member.count("/") == 1 and accept(member)]:
        raise UserError(
            f"{where}: {len(loose)} images lie in no class: {shown(loose)}. Move them into the folder of their class, "
            f"or out of {name}."
        )
    for top in (top for top in beside if top.endswith("/")):
        if shared := sorted(
            {c for c, images in by_class(members, accept, top).items() if images} & set(found["train"])
        ):
            raise UserError(
                f"{where}: {top} holds images of the classes of train ({shown(shared)}), and is none of the folders "
                f"that are read: {', '.join(SPLITS)}. Rename it (validation images: val), or move it out of {name}."
            )
    if left_out := [*rest, *beside]:
        print(f"{where}: left out {len(left_out)}, no images of a split: {shown(left_out)}", file=sys.stderr)
    return build(found, files.load, origin)


def check_classes(where: Path, found: Mapping[str, Mapping[str, list[str]]]) -> None:
    """A `UserError` where the splits of ``found`` (split -> class -> images) do not have the same classes, or a class
    no image. A class may be absent from val."""
    classes = set(found["train"])
    for split, folders in found.items():
        if unknown := sorted(set(folders) - classes):
            raise UserError(_differ(where, f"{split} has classes that train has not", unknown))
        if empty := sorted(c for c, images in folders.items() if not images):
            raise UserError(_differ(where, f"{split} has classes without a single image", empty))
    if missing := sorted(classes - set(found["test"])):
        raise UserError(_differ(where, "train has classes that test has not", missing))


def build(
    found: Mapping[str, Mapping[str, list[str]]], load: Callable[[str], Image.Image], origin: Mapping[str, Any]
) -> Source:
    """The source of ``found`` (split -> class -> names of images), whose classes are those of train, sorted."""
    classes = sorted(found["train"])
    splits = {}
    for split, folders in found.items():
        splits[split] = _split([(image, k) for k, c in enumerate(classes) for image in folders.get(c, [])], load)
    return Source(classes, splits, origin)


def _split(pairs: Sequence[tuple[str, int]], load: Callable[[str], Image.Image]) -> Split:
    names = [member for member, _ in pairs]
    return Split(names, np.array([label for _, label in pairs], np.int64), lambda i: load(names[i]))


def _differ(where: Path, what: str, names: Sequence[str]) -> str:
    return f"{where}: {what}: {len(names)} ({shown(names)}). Complete them, or remove the classes from all."


def shown(names: Sequence[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
