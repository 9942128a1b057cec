"""Labeled Faces in the Wild, funneled, with the attributes of Kumar et al. (2009) as continuous labels; split and
pixels are DiTi's (yue-zhongqi/diti, eval/src/lfw_attribute.py)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from diffsiam.data.images import decode, resize
from diffsiam.data.readers import Source, Split

_LISTS = {"train": "peopleDevTrain.txt", "test": "peopleDevTest.txt"}  # LFW's view 1: no person is in both
_SHOWN = 5  # names in a message


def source(root: Path, image_size: int) -> Source:
    """``<root>/lfw-py/`` in torchvision's layout, with lfw_attributes.txt. Images without a row there are left out and
    counted.

    Args:
        image_size: side in pixels at which `crop` gives the images.
    Raises:
        ValueError: a list or the table is not as published, or no image has a row.
    """
    folder = root / "lfw-py"
    names, values = attributes((folder / "lfw_attributes.txt").read_text(encoding="utf-8"))
    splits, left_out = {}, {}
    for part, file in _LISTS.items():
        listed = people((folder / file).read_text(encoding="utf-8"))
        splits[part] = _split(folder, [image for image in listed if image in values], values, image_size)
        missing = [image for image in listed if image not in values]
        left_out[part] = len(missing)
        if not len(splits[part]):
            raise ValueError(f"lfw_attributes.txt has a row for none of the {len(listed)} images of {file}")
        if missing:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            print(
                f"LFW: left out {len(missing)} of {len(listed)} {part} images without attributes: {shown}",
                file=sys.stderr,
            )
    origin = {"kind": "torchvision", "folder": folder.name, "without_attributes": left_out}
    return Source(["face"], splits, origin, targets=names)


def people(text: str) -> list[str]:
    """Images of a list: a line with the number of people, then one for each with name and number of images."""
    count, *lines = text.splitlines()
    people = [line.split("\t") for line in lines[: int(count)]]
    return [_file(name, i) for name, images in people for i in range(1, int(images) + 1)]


def attributes(text: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names of the attributes, and by image their values, float32: classifiers' margins, above 0 where present.

    The table is tab separated: a comment; ``#``, ``person``, ``imagenum`` and the names, so that headings stand one
    column to the right of their values; then a row for each image.

    Raises:
        ValueError: another heading, or a row that does not fit it.
    """
    _, heading, *rows = text.splitlines()
    mark, person, number, *names = [field.strip() for field in heading.split("\t")]
    if (mark, person, number) != ("#", "person", "imagenum") or not names:
        raise ValueError(f"lfw_attributes.txt, line 2: begins {heading[:40]!r}, needed is '#', 'person', 'imagenum'")
    values: dict[str, np.ndarray] = {}
    for line, row in enumerate(rows, start=3):
        fields = row.split("\t")
        if len(fields) != 2 + len(names):
            raise ValueError(f"lfw_attributes.txt, line {line}: {len(fields)} fields, needed are {2 + len(names)}")
        try:
            found = np.array(fields[2:], np.float32)
            image = _file(fields[0], int(fields[1]))
        except ValueError as e:
            raise ValueError(f"lfw_attributes.txt, line {line}: {e}") from None
        if not np.isfinite(found).all():
            raise ValueError(f"lfw_attributes.txt, line {line}: NaN or infinity")
        values[image] = found
    return names, values


def crop(image: Image.Image, size: int) -> Image.Image:
    """The short side to ``int(1.1 size)``, bilinear, then the central ``size`` by ``size`` pixels."""
    side = int(1.1 * size)
    margin = round((side - size) / 2)
    return resize(image, side, Image.Resampling.BILINEAR).crop((margin, margin, margin + size, margin + size))


def _file(person: str, number: int) -> str:
    name = person.strip().replace(" ", "_")
    return f"lfw_funneled/{name}/{name}_{number:04d}.jpg"


def _split(folder: Path, names: list[str], values: Mapping[str, np.ndarray], size: int) -> Split:
    targets = np.array([values[name] for name in names])
    labels = np.zeros(len(names), np.int64)
    return Split(names, labels, lambda i: crop(decode(folder / names[i]), size), targets=targets)
