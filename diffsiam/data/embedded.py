"""Data sets that need no download: real digits, crops of real photographs, rendered sprites and grids of factors."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from diffsiam import runtime
from diffsiam.data import scenes
from diffsiam.data.readers import Source, Split, decode, stratified
from diffsiam.errors import UserError

# Rendering and crops are part of these data sets, as pixels are of others: no parameter changes them.
_SEED = 0


def source(name: str, image_size: int, split_seed: int) -> Source:
    """One of the embedded data sets.

    Args:
        name: ``digits``, ``photos``, ``sprites``, ``rooms`` or ``tiles``.
        image_size: side in pixels at which the last three are rendered; the others come at their own sizes.
        split_seed: seed of the test part of ``digits``; the others have fixed test parts.
    Raises:
        UserError: an installed package lacks its images.
    """
    makers: dict[str, Callable[[], Source]] = {
        "digits": lambda: digits(split_seed),
        "photos": photos,
        "sprites": lambda: sprites(image_size),
        "rooms": lambda: scenes.source("rooms", image_size),
        "tiles": lambda: scenes.source("tiles", image_size),
    }
    return makers[name]()


# ----------------------------------------------------------------------------------------------------- digits
def digits(split_seed: int) -> Source:
    """The 1 797 handwritten 8x8 digits of scikit-learn (UCI's test set); a stratified third is test."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # stored in 0..16
    test = stratified(labels, 1 / 3, runtime.rng(split_seed, "digits/test"))
    train = np.setdiff1d(np.arange(len(labels)), test)

    def split(indices: np.ndarray) -> Split:
        names = [f"digit {i:04d}" for i in indices]
        return Split(names, labels[indices], lambda i: Image.fromarray(images[indices[i]]).convert("RGB"))

    origin = {"kind": "embedded", "package": "scikit-learn"}
    return Source([str(d) for d in range(10)], {"train": split(train), "test": split(test)}, origin)


# ----------------------------------------------------------------------------------------------------- photos
# Class -> package and file within it: the colour photographs that lie inside the two wheels.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "dahlia": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "pagoda": ("sklearn", "datasets/images/china.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
_CROPS = {"train": 100, "test": 50}  # per photograph


def photos() -> Source:
    """Square crops of real photographs, one class each: train from the left half, test from the right."""
    files = {name: _package_file(*where) for name, where in PHOTOGRAPHS.items()}
    classes = list(files)

    @functools.cache
    def photograph(label: int) -> Image.Image:
        return decode(files[classes[label]])

    def split(part: str) -> Split:
        count = _CROPS[part]
        labels = np.repeat(np.arange(len(classes)), count)
        names = [f"{part}/{classes[c]}/{i % count:04d}" for i, c in enumerate(labels)]

        def load(i: int) -> Image.Image:
            image = photograph(int(labels[i]))
            return image.crop(crop_box(image.size, part, names[i]))

        return Split(names, labels, load)

    origin = {"kind": "embedded", "package": "scikit-image, scikit-learn"}
    return Source(classes, {part: split(part) for part in _CROPS}, origin)


def crop_box(size: tuple[int, int], part: str, name: str) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of a square inside the part's half of a photograph of ``size`` (width,
    height), between 40 and 80 % of the largest that fits."""
    width, height = size
    half = width // 2
    rng = runtime.rng(_SEED, "photos", name)
    side = round(rng.uniform(0.4, 0.8) * min(half, height))
    left = int(rng.integers(half - side + 1)) + (width - half if part == "test" else 0)
    upper = int(rng.integers(height - side + 1))
    return left, upper, left + side, upper + side


def _package_file(package: str, file: str) -> Path:
    """A file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path(package)
    if not (folder / file).is_file():
        raise UserError(
            f"photos: {package}/{file} is not in this installation. Install the versions of scikit-learn and "
            "scikit-image that the lock file pins."
        )
    return folder / file


# ---------------------------------------------------------------------------------------------------- sprites
COLOURS = {
    "Red": (220, 40, 40),
    "Yellow": (235, 200, 30),
    "Green": (40, 160, 60),
    "Cyan": (30, 185, 205),
    "Blue": (45, 75, 220),
    "Magenta": (210, 50, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
ATTRIBUTES = (*(s.title() for s in SHAPES), *COLOURS, "Large", "Left", "Top", "Dark background")
TARGETS = ("Radius", "X", "Y", "Background")
_COUNTS = {"train": 3_000, "test": 900}


@dataclasses.dataclass(frozen=True)
class Sprite:
    """The factors of one image. Lengths are shares of the image's side, y points down."""

    shape: int
    colour: int
    radius: float
    x: float
    y: float
    background: float  # grey in [0, 1]


def sprites(image_size: int) -> Source:
    """Six shapes in six colours, of any size and place, on a dark or a light background.

    The shape is the class; the factors are independent, each is an attribute, and classes have equal counts. Those of
    continuous values are continuous labels too.
    """

    def split(part: str) -> Split:
        drawn = [draw_factors(part, i) for i in range(_COUNTS[part])]
        names = [f"{part}/{i:04d}" for i in range(len(drawn))]
        labels = np.array([s.shape for s in drawn])
        attributes = np.stack([attribute_row(s) for s in drawn])
        targets = np.array([(s.radius, s.x, s.y, s.background) for s in drawn], np.float32)
        return Split(names, labels, lambda i: Image.fromarray(render(drawn[i], image_size)), attributes, targets)

    origin = {"kind": "embedded", "package": "diffsiam"}
    return Source(SHAPES, {part: split(part) for part in _COUNTS}, origin, ATTRIBUTES, TARGETS)


def draw_factors(part: str, item: int) -> Sprite:
    """The factors of one sprite, wholly inside the image; shapes take turns, the rest is drawn uniformly."""
    rng = runtime.rng(_SEED, f"sprites/{part}", item)
    radius = rng.uniform(0.16, 0.36)
    x, y = radius + rng.random(2) * (1 - 2 * radius)
    dark = rng.random() < 0.5
    background = rng.uniform(0.05, 0.25) if dark else rng.uniform(0.7, 0.95)
    return Sprite(item % len(SHAPES), int(rng.integers(len(COLOURS))), radius, x, y, background)


def attribute_row(sprite: Sprite) -> np.ndarray:
    """The sprite's `ATTRIBUTES`, uint8 in {0, 1}."""
    row = [k == sprite.shape for k in range(len(SHAPES))] + [k == sprite.colour for k in range(len(COLOURS))]
    row += [sprite.radius > 0.26, sprite.x < 0.5, sprite.y < 0.5, sprite.background < 0.5]
    return np.array(row, np.uint8)


def render(sprite: Sprite, image_size: int) -> np.ndarray:
    """Draw one sprite, anti-aliased: uint8, (image_size, image_size, 3)."""
    at = scenes.samples(image_size)
    u, v = np.meshgrid((at - sprite.x) / sprite.radius, (at - sprite.y) / sprite.radius)
    coverage = scenes.averaged(inside(SHAPES[sprite.shape], u, v))[..., None]
    colour = np.array(list(COLOURS.values())[sprite.colour])
    return np.round(coverage * colour + (1 - coverage) * 255 * sprite.background).astype(np.uint8)


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points lie in a shape of radius 1 around the origin; ``v`` points down. Boolean, as ``u``."""
    a, b = np.abs(u), np.abs(v)
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "ring":
        return (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.3)
    if shape == "square":
        return np.maximum(a, b) <= 0.85
    if shape == "cross":
        return (np.maximum(a, b) <= 1) & (np.minimum(a, b) <= 0.3)
    if shape == "triangle":  # equilateral, tip up: left and right edges, then the base
        return (np.sqrt(3) * a - v <= 1) & (v <= 0.5)
    # Five-pointed star, tip up: fold the plane into one tenth, where one edge joins a tip to a notch.
    angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    across, along = np.hypot(u, v) * np.sin(angle), np.hypot(u, v) * np.cos(angle)
    notch = 0.45 * np.sin(np.pi / 5), 0.45 * np.cos(np.pi / 5)
    return (1 - along) * notch[0] >= across * (1 - notch[1])
