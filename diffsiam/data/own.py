"""Images of one's own under a name (section `datasets` of params.yaml): a folder, a tar, or a CSV of files and labels.

What is there says how it is read: ``train/`` or ``test/`` at the top are splits, else all images are train; within them
folders are classes, or, where images lie there themselves, nothing is labelled. Where there is no test split a seed
draws one.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from diffsiam import runtime
from diffsiam.data import places, readers, unlabelled
from diffsiam.data.images import decode
from diffsiam.data.readers import SPLITS, Files, Source, composed, shown
from diffsiam.data.sources import DATASETS, DataSet, Entries, Own, table
from diffsiam.errors import UserError
from diffsiam.params import place

TEST_SHARE = 0.2  # of every class, where there is no test split
UNLABELLED = "image"  # the class of all images where there are none
COLUMNS = ("image", "label", "split")  # of a CSV; the first is needed

Found = dict[str, dict[str, list[str]]]  # split -> class -> names of images


def read(name: str, own: Own, split_seed: int) -> Source:
    """The images of entry ``name`` of `datasets`.

    Raises:
        UserError: nothing is there, or it is none of what can be read; images or rows that would be passed over; splits
            with different classes.
    """
    path = place(own.path)
    if not os.path.exists(path):
        raise UserError(f"datasets.{name}.path: {path} is not there. Name the folder, tar or CSV of the images.")
    if _is_csv(path):
        kind, found, load = "csv", _listed(path), _beside(path)
    else:
        kind = "folder" if path.is_dir() else "tar"
        files = _unwrapped(readers.folder(path) if path.is_dir() else readers.packed(path))
        found, load = _sorted(name, path, files, own.layout), files.load
    if not found.get("train"):
        raise UserError(f"{path}: no train images. Found: {', '.join(found) or 'no rows'}. Name or move some so.")
    origin = {"kind": f"own {kind}"}
    if "test" not in found:
        found |= _drawn(path, found["train"], split_seed)
        origin["test"] = f"with {TEST_SHARE:.0%} of every class drawn for test by data.split_seed {split_seed}"
        print(f"{name}: has no test split, so it is read {origin['test']}.", file=sys.stderr)
    if own.validation is not None and "val" in found:
        raise UserError(f"datasets.{name}.validation: met {own.validation:g}, but {path} has a val split. Drop either.")
    readers.check_classes(path, found)
    source = readers.build(found, load, origin)
    return unlabelled.with_attributes(source, place(own.attributes)) if own.attributes else source


def parts(own: Own) -> list[Path]:
    """The files, and the folder with all below it, that the images depend on; whether they are there or not."""
    path = place(own.path)
    try:
        return [path, *(path.parent / row["image"] for _, row in _rows(path))] if _is_csv(path) else [path]
    except UserError:  # which the job will say
        return [path]


def entered(words: Sequence[str], entries: Entries) -> tuple[list[str], Entries]:
    """Names of data sets in the place of ``words``, which may be paths too; and ``entries`` with one for each path,
    named by the letters and digits of its last part."""
    names: list[str] = []
    for word in words:
        name, entries = (word, entries) if word in table(entries) else _entered(word, entries)
        names.append(name)
    return names, entries


def _entered(word: str, entries: Entries) -> tuple[str, Entries]:
    known, path = table(entries), place(word).resolve()
    if not os.path.exists(path):
        raise UserError(
            f"--data {word}: neither a data set nor a folder, tar or CSV of images. Data sets: {', '.join(known)}."
        )
    name = re.sub("[^A-Za-z0-9]", "", path.name if path.is_dir() else path.stem)
    if name in entries and place(entries[name]["path"]).resolve() == path:
        return name, entries
    if not name or name in known:
        raise UserError(
            f"--data {word}: {name or 'without letters and digits it'} is no new name. Give it one in section datasets "
            "of params.yaml, and name that."
        )
    return name, {**entries, name: {"path": word}}


def refuse_unlabelled(where: str, rows: Iterable[DataSet]) -> None:
    """A `UserError` for data sets of the tables that have no classes."""
    if without := [row.name for row in rows if not (_labelled(row.own) if row.own else row.labelled)]:
        names = ", ".join(row.name for row in DATASETS.values() if row.labelled)
        raise UserError(
            f"{where} {' '.join(without)}: no classes to tell apart. Data sets with classes: {names}, and your own in "
            "folders of classes, or in a CSV with a column label."
        )


def _labelled(own: Own) -> bool:
    """Whether there are classes, at a glance: of a tar, and of what is not there, as far as the entry says."""
    path = place(own.path)
    if _is_csv(path) and os.path.isfile(path):
        return "label" in _header(path)
    if own.layout is not None or not os.path.isdir(path):
        return own.layout != "flat"
    accept = readers.images_below(path)
    first = next((name for name in places.walk(path) if not name.endswith("/") and accept(name)), None)
    return first is None or "/" in _inner(first)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _inner(name: str) -> str:
    """A name without the folder of its split."""
    split, _, inner = name.partition("/")
    return inner if split in SPLITS and inner else name


def _unwrapped(files: Files) -> Files:
    """Without the one folder that everything lies in, as in most tars, where that is no split."""
    top = files.names[0].partition("/")[0] + "/" if files.names else ""
    if top.strip("/") in ("", *SPLITS) or not all(name.startswith(top) for name in files.names):
        return files
    names = [name.removeprefix(top) for name in files.names if name != top]
    return Files(names, lambda name: files.load(top + name), lambda name: files.accept(top + name))


def _sorted(name: str, path: Path, files: Files, layout: str | None) -> Found:
    """The images of a folder or tar by split and class; refuses what would be passed over, says what is no image."""
    images = {file: None for file in files.names if not file.endswith("/") and files.accept(file)}
    if not images:
        raise UserError(f"datasets.{name}.path: {path} holds no image. Found: {shown(files.names) or 'nothing'}.")
    if rest := [file for file in files.names if not file.endswith("/") and file not in images]:
        print(f"{path}: left out {len(rest)}, no images: {shown(rest)}", file=sys.stderr)
    first = {file.partition("/")[0] for file in files.names if "/" in file}
    split = not first.isdisjoint(("train", "test"))
    tops = {f"{part}/": part for part in SPLITS if part in first} if split else {"": "train"}
    if beside := [image for image in images if not image.startswith(tuple(tops))]:
        raise UserError(
            f"{path}: {len(beside)} images lie beside {', '.join(tops)}: {shown(beside)}. Move them away or into "
            f"one of {', '.join(SPLITS)}, which are splits; a class of such a name needs another."
        )
    loose = [image for image in images if "/" not in (_inner(image) if split else image)]
    deep = images.keys() - set(loose)
    if loose and deep and layout != "flat":
        raise UserError(
            f"{path}: {len(loose)} images lie in no class ({shown(loose)}), {len(deep)} in folders "
            f"({shown(sorted(deep))}). Move the former into the folder of their class or away; where there are no "
            f"classes, set datasets.{name}.layout to flat."
        )
    if layout == "classes" and loose:
        raise UserError(
            f"{path}: datasets.{name}.layout is classes, but no image lies in the folder of a class: {shown(loose)}. "
            "Make a folder for each class, or set it to flat."
        )
    if layout == "flat" or loose:
        return {part: {UNLABELLED: sorted(i for i in images if i.startswith(top))} for top, part in tops.items()}
    if layout is None and not split:
        _refuse_nested(name, path, images)
    return {part: readers.by_class(files.names, images.__contains__, top) for top, part in tops.items()}


def _refuse_nested(name: str, path: Path, images: Iterable[str]) -> None:
    """A `UserError` where what would be classes may be folders above them: splits of another name (``Train/``,
    ``fold1/``), which hold the same folders, or one folder of everything beside a README."""
    below: dict[str, set[str]] = {}
    for image in images:
        top, *folders, _ = image.split("/")
        below.setdefault(top, set()).update(folders[:1])
    times = Counter(folder for folders in below.values() for folder in folders)
    often = {folder for folder, count in times.items() if count > 1 or len(below) == 1}
    if len(often) < 2:
        return
    above = [top for top, folders in below.items() if not often.isdisjoint(folders)]
    raise UserError(
        f"{path}: which are the classes: {shown(above)}, or {shown(sorted(often))} in {'each' if above[1:] else 'it'}? "
        f"Splits are called {', '.join(SPLITS)}: rename them; where the classes lie in one folder, name that one as "
        f"path. If {shown(above)} are, set datasets.{name}.layout to classes; if there are none, to flat."
    )


def _drawn(path: Path, train: Mapping[str, Sequence[str]], split_seed: int) -> Found:
    """Train and test out of ``train``, class by class: other classes, and other images' order, move nothing."""
    found: Found = {"train": {}, "test": {}}
    for label, images in train.items():
        if len(images) < 2:
            raise UserError(
                f"{path}: images of class {label}: {len(images)}; as there is no test split, needed are 2 or more. Add "
                "some, or remove the class."
            )
        order = runtime.rng(split_seed, "own/test", label).permutation(len(images))
        test = set(order[: max(1, round(TEST_SHARE * len(images)))].tolist())
        found["train"][label] = [image for i, image in enumerate(images) if i not in test]
        found["test"][label] = [image for i, image in enumerate(images) if i in test]
    return found


# ------------------------------------------------------------------------------------------------------------ CSV
def _listed(path: Path) -> Found:
    """The images of a CSV by split and class."""
    found: Found = {}
    lines: dict[str, int] = {}
    twice: list[str] = []
    for line, row in _rows(path):
        image = posixpath.normpath(row["image"])
        if lines.setdefault(image, line) != line:
            twice.append(f"{image} (lines {lines[image]} and {line})")
        split, label = row.get("split", "train"), composed(row.get("label", UNLABELLED))
        if split not in SPLITS or not label or not row["image"]:
            raise UserError(
                f"{path}, line {line}: met {row}. Needed: a file, a label that is not empty, and as split one of "
                f"{', '.join(SPLITS)}; leave a column out where no image has it."
            )
        found.setdefault(split, {}).setdefault(label, []).append(image)
    if twice:
        raise UserError(f"{path}: {len(twice)} images stand there twice: {shown(twice)}. Keep one row for each.")
    if lines and not any(os.path.isfile(path.parent / image) for image in lines):
        raise UserError(
            f"{path}: none of its {len(lines)} images is there, such as {path.parent / next(iter(lines))}. Names are "
            "relative to the folder of the CSV, or whole paths."
        )
    if other := [column for column in _header(path) if column not in COLUMNS]:
        print(f"{path}: left out columns {shown(other)}; read are {', '.join(COLUMNS)}.", file=sys.stderr)
    # Sorted, so that the order of the rows decides nothing.
    return {part: {label: sorted(images) for label, images in found[part].items()} for part in SPLITS if part in found}


def _beside(path: Path) -> Callable[[str], Image.Image]:
    return lambda image: decode(path.parent / image)


def _header(path: Path) -> list[str]:
    return next(_cells(path), (0, []))[1]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and cells, by `COLUMNS`, of every row."""
    rows = _cells(path)
    _, header = next(rows, (0, []))
    if "image" not in header or len(set(header)) < len(header):
        raise UserError(
            f"{path}: met the header {','.join(header) or 'of no column'}. Needed is image,label,split with commas, "
            "each once; label and split may be absent."
        )
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: met {len(cells)} cells, needed are {len(header)}, as in the header.")
        yield line, {column: cell for column, cell in zip(header, cells, strict=True) if column in COLUMNS}


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            yield from ((rows.line_num, [cell.strip() for cell in cells]) for cells in rows if cells)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: not a CSV in UTF-8 that can be read ({e}). Save it as such.") from None
