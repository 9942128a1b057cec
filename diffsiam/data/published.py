"""The data sets of the thesis as they are published, in torchvision's layout, with the splits that
transfer benchmarks take them in.

torchvision's classes read the lists where they have the splits; PyTorch is imported only for those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffsiam import runtime
from diffsiam.data import lfw, places, readers, unlabelled
from diffsiam.data.readers import Source, Split
from diffsiam.data.sources import DataSet
from diffsiam.errors import UserError

CALTECH_TRAIN = 30  # images per class


def read(row: DataSet, root: Path, split_seed: int, image_size: int) -> Source:
    """One of them, unpacked under ``root``.

    Args:
        split_seed: seed of the splits that are drawn (Caltech).
        image_size: side in pixels at which LFW is cropped; the others come at their own sizes.
    Raises:
        UserError: files are missing, damaged or of another version.
    """
    try:
        match row.name:
            case "Caltech":
                return caltech(row, root, split_seed)
            case "Pets":
                return pets(row, root)
            case "SUN":
                return sun(row, root)
            case "CelebA":
                return unlabelled.celeba(root)
            case "FFHQ":
                return unlabelled.ffhq(root)
            case "Bedroom":
                return unlabelled.bedroom(root)
            case "LFW":
                return lfw.source(root, image_size)
            case _:
                return _torchvision(row, root)
    except UserError:
        raise
    except Exception as e:  # torchvision's readers, and those that they use, raise anything for a damaged list
        parts = ", ".join(str(part) for archive in row.archives for part in archive.parts(root))
        raise UserError(
            f"{row.name}: the copy in torchvision's layout cannot be read: {e}. Complete it, or delete it so that "
            f"it is fetched again: {parts}."
        ) from None


def _torchvision(row: DataSet, root: Path) -> Source:
    from torchvision import datasets

    match row.name:
        case "CIFAR10":
            return cifar(row, root, datasets.CIFAR10)
        case "CIFAR100":
            return cifar(row, root, datasets.CIFAR100)
        case "Aircraft":
            return listed(row, root, datasets.FGVCAircraft, ("train", "val", "test"))
        case "Cars":
            return listed(row, root, datasets.StanfordCars, ("train", "test"))
        case "DTD":  # its first of ten partitions
            return listed(row, root, datasets.DTD, ("train", "val", "test"))
        case "Flowers":
            return listed(row, root, datasets.Flowers102, ("train", "val", "test"))
        case "Food":
            return listed(row, root, datasets.Food101, ("train", "test"))
    raise LookupError("diffsiam/data/published.py has no case that reads it")


def cifar(row: DataSet, root: Path, dataset: Callable[..., Any]) -> Source:
    """CIFAR through torchvision's class or one with its interface, which compares the pickles with their
    checksums before it loads them."""

    def split(part: str) -> Split:
        data = dataset(root, train=part == "train")
        names = [f"{part} image {i}" for i in range(len(data))]
        return Split(names, np.array(data.targets, np.int64), lambda i: Image.fromarray(data.data[i]))

    classes = dataset(root, train=False).classes
    return Source(classes, {part: split(part) for part in ("train", "test")}, origin(row))


def listed(row: DataSet, root: Path, dataset: Callable[..., Any], parts: Sequence[str]) -> Source:
    """A data set whose torchvision class, or one with its interface, lists image files by split."""
    splits, classes = {}, {}
    for part in parts:
        data = dataset(root, split=part, loader=Path)  # so an item is a path and a label: nothing is decoded here
        items = [data[i] for i in range(len(data))]
        names = [path.relative_to(root).as_posix() for path, _ in items]
        splits[part] = readers.files(root, names, [int(label) for _, label in items])
        classes[part] = list(data.classes)
        if classes[part] != classes["train"]:
            raise ValueError(f"the classes of {part} differ from those of train")
    return Source(classes["train"], splits, origin(row))


def caltech(row: DataSet, root: Path, split_seed: int) -> Source:
    """Caltech-101 with its background class, which torchvision leaves out: 30 images per class train, drawn by
    seed and class name; the rest test."""
    folder = root / "caltech101" / "101_ObjectCategories"
    found = readers.by_class(places.walk(folder), readers.images_below(folder))
    classes = sorted(found)
    drawn: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        images = [(folder / image).relative_to(root).as_posix() for image in found[name]]
        if len(images) <= CALTECH_TRAIN:
            raise ValueError(f"class {name} has {len(images)} images, needed are more than {CALTECH_TRAIN}")
        order = runtime.rng(split_seed, "Caltech/train", name).permutation(len(images))
        drawn["train"] += [(images[i], label) for i in sorted(order[:CALTECH_TRAIN])]
        drawn["test"] += [(images[i], label) for i in sorted(order[CALTECH_TRAIN:])]
    return Source(classes, {part: _files(root, items) for part, items in drawn.items()}, origin(row))


def pets(row: DataSet, root: Path) -> Source:
    """Oxford-IIIT Pets: a line of trainval.txt and test.txt is image, class from 1, species, breed."""
    folder = root / "oxford-iiit-pet"
    splits, classes = {}, {}
    for part, file in (("train", "trainval.txt"), ("test", "test.txt")):
        lines = [line.split() for line in (folder / "annotations" / file).read_text().splitlines()]
        classes[part] = {int(line[1]) - 1: line[0].rsplit("_", 1)[0] for line in lines}
        splits[part] = _files(root, [(f"oxford-iiit-pet/images/{n[0]}.jpg", int(n[1]) - 1) for n in lines])
    if classes["train"] != classes["test"] or sorted(classes["train"]) != list(range(len(classes["train"]))):
        raise ValueError("trainval.txt and test.txt do not name the same classes")
    names = [classes["train"][label].replace("_", " ").title() for label in range(len(classes["train"]))]
    return Source(names, splits, origin(row))


def sun(row: DataSet, root: Path) -> Source:
    """SUN397, the first of its ten partitions: a line is /<letter>/<class>/<image>, a class may have two parts."""
    paths = (root / "SUN397" / "ClassName.txt").read_text().split()
    label = {path: k for k, path in enumerate(paths)}
    splits = {}
    for part, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        lines = (root / "SUN397-partitions" / file).read_text().split()
        splits[part] = _files(root, [(f"SUN397{line}", label[line.rsplit("/", 1)[0]]) for line in lines])
    return Source([path[3:] for path in paths], splits, origin(row))


def origin(row: DataSet) -> dict[str, Any]:
    """What meta.json says about a data set in torchvision's layout."""
    return {"kind": "torchvision", "archives": [archive.file for archive in row.archives]}


def _files(root: Path, items: Sequence[tuple[str, int]]) -> Split:
    return readers.files(root, [name for name, _ in items], [label for _, label in items])
