"""Where the images of a data set lie under `data.root`: one order, and what is there but not understood is an error.

Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from diffsiam.data.sources import DataSet
from diffsiam.errors import UserError

# What systems put into folders: thumbnails, forks of files, what was deleted.
_SYSTEMS = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
_PACKED = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar")


@dataclasses.dataclass(frozen=True)
class Place:
    """What a data set is read from.

    Attributes:
        kind: ``torchvision``: its layout; ``embedded``: nothing is read; ``absent``: it is to be fetched.
        parts: files, and folders with what lies below them (`walk`): the images depend on nothing else.
    """

    kind: Literal["embedded", "class folders", "tar", "torchvision", "absent"]
    parts: tuple[Path, ...] = ()


def locate(row: DataSet, root: Path) -> Place:
    """The place of a data set: class folders ``<root>/<name>/``, ``<root>/<name>.tar``, or all parts of torchvision's
    layout, whichever is there; else absent.

    Raises:
        UserError: more than one of them is there, or something that was meant to be one: a folder without train and
            test, another spelling, another kind of archive, ``root`` itself; a folder that may not be listed.
    """
    beside = _names(root)
    own = [root / name for name in (row.name, f"{row.name}.tar") if name in beside]
    if row.embedded:
        if own := [path for path in own if not os.path.isdir(path) or _has_splits(path)]:
            raise UserError(
                f"{row.name} is embedded, and {own[0]} would never be read: give the images a name of their own in "
                "section datasets of params.yaml, or move them out of data.root."
            )
        return Place("embedded")
    if row.factors:
        return _grid(row, root, [*own, *_lookalikes(row, root, beside)])
    if (root / row.name) in own and not _has_splits(root / row.name):
        raise UserError(
            f"{root / row.name}: holds neither train/ nor test/. Needed: {row.name}/train/<class>/* and "
            f"{row.name}/test/<class>/*. Found: {_shown(root / row.name)}. Rename them, or move the folder out of "
            "data.root so that it is not taken for the data set."
        )
    found = [Place("tar" if path.suffix else "class folders", (path,)) for path in own]
    if all(archive.present(root) for archive in row.archives):
        found.append(Place("torchvision", tuple(part for archive in row.archives for part in archive.parts(root))))
    if len(found) > 1:
        listed = "; ".join(f"{place.kind}: {', '.join(map(str, place.parts))}" for place in found)
        raise UserError(
            f"{row.name}: its images lie in {len(found)} places, and only one can be meant: {listed}. "
            "Keep that one, and move the others out of data.root."
        )
    if not own:
        _refuse_lookalikes(row, root, beside, published=bool(found))
    return found[0] if found else Place("absent")


def _grid(row: DataSet, root: Path, meant: list[Path]) -> Place:
    """The published file of a grid of factors: of images in folders nobody knows the factors."""
    parts = tuple(part for archive in row.archives for part in archive.parts(root))
    if meant:
        raise UserError(
            f"{meant[0]}: not read. {row.name} is a grid of factors, whose images only the published file has in their "
            f"order: place that at {parts[0]}, or let it be fetched, and move this out of data.root."
        )
    return Place("torchvision", parts) if all(archive.present(root) for archive in row.archives) else Place("absent")


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is none of the user's."""
    return name.startswith(".") or name in _SYSTEMS


def walk(top: Path) -> Iterator[str]:
    """All that lies below a folder, sorted, as paths relative to it with ``/`` between names; those of folders end
    with one. Links are followed; hidden names, and what is neither file nor folder, are left out.

    Raises:
        UserError: a folder that may not be listed, or a link to a folder that it lies in.
    """
    return _walk(top, "", ())


def _walk(top: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = top.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(f"{top}: a link to a folder that it lies in. Remove it.")
        with os.scandir(top) as entries:
            ordered = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda e: e.name)
        for entry in ordered:
            if entry.is_dir():
                yield f"{prefix}{entry.name}/"
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
            elif entry.is_file() or entry.is_symlink():  # a link to nothing is a file that is missing
                yield f"{prefix}{entry.name}"
    except OSError as e:
        raise UserError(
            f"{e.filename or top}: cannot be listed ({e.strerror}). Make it readable, such as by "
            f"`chmod -R u+rX {top}`, or move it away."
        ) from None


def _names(folder: Path) -> list[str]:
    """Visible names in a folder, as they are written: a disk may take ``dtd`` for ``DTD``. None where it is missing."""
    try:
        return sorted(name for name in os.listdir(folder) if not hidden(name))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(
            f"{folder}: cannot be listed ({e.strerror}). It is data.root or lies in it, and has to be a folder that "
            "you may read."
        ) from None


def _has_splits(folder: Path) -> bool:
    return os.path.isdir(folder) and not {"train", "test"}.isdisjoint(_names(folder))


def _shown(folder: Path) -> str:
    names = _names(folder) if os.path.isdir(folder) else []
    names = [f"{name}/" if os.path.isdir(folder / name) else name for name in names]
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) or "nothing"


def _lookalikes(row: DataSet, root: Path, beside: list[str]) -> Iterator[Path]:
    """What is no place of the data set, and was meant to be one: of another spelling or packing."""
    for name in beside:
        stem, dot, suffix = name.partition(".")
        if stem.casefold() != row.name.casefold() or name in (row.name, f"{row.name}.tar"):
            continue
        if dot + suffix.casefold() in _PACKED or (not dot and _has_splits(root / name)):
            yield root / name


def _refuse_lookalikes(row: DataSet, root: Path, beside: list[str], *, published: bool) -> None:
    """A `UserError` for what is no place of the data set, and was meant to be one."""
    for path in _lookalikes(row, root, beside):
        raise UserError(
            f"{path}: not read. A copy of {row.name} lies in a folder {row.name}/ with train/ and test/, or in an "
            f"uncompressed {row.name}.tar of it: rename or unpack this, or move it out of data.root. Images that are "
            "not its own get a name in section datasets of params.yaml."
        )
    if not published and {"train", "test"} <= set(beside):
        raise UserError(
            f"{root}: data.root holds train/ and test/ itself. If that is {row.name}, set it to the folder above, and "
            f"name the folder that holds them {row.name}/; images of your own get a name in section datasets of "
            "params.yaml."
        )
