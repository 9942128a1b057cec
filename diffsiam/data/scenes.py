"""Grids of factors that are rendered here: `rooms`, with the factors of Shapes3D, and `tiles`, with those of dSprites.

Rooms are ray-cast in closed form. Lengths are in units of the room, whose walls stand 8 from its middle; y points up.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from diffsiam.data import readers, sources
from diffsiam.data.grid import Grid
from diffsiam.data.readers import Source

_SUPERSAMPLE = 4  # samples along a pixel's side


def source(name: str, image_size: int) -> Source:
    """``rooms`` or ``tiles``, rendered at ``image_size``."""
    render = {"rooms": rooms, "tiles": tiles}[name]
    render(0, image_size)  # casts what is cached, once, before threads ask for it
    origin = {"kind": "embedded", "package": "diffsiam"}
    return readers.grid(sources.get(name), lambda i: Image.fromarray(render(i, image_size)), origin)


def samples(image_size: int) -> np.ndarray:
    """Where the samples of an image lie along a side of length 1: 4x4 for each pixel, (4 * image_size,)."""
    return (np.arange(image_size * _SUPERSAMPLE) + 0.5) / (image_size * _SUPERSAMPLE)


def averaged(values: np.ndarray) -> np.ndarray:
    """Pixels as the means of their samples: (4 H, 4 W) -> (H, W)."""
    height, width = (side // _SUPERSAMPLE for side in values.shape)
    return values.reshape(height, _SUPERSAMPLE, width, _SUPERSAMPLE).mean(axis=(1, 3))


# ------------------------------------------------------------------------------------------------------ rooms
ROOMS = Grid.named(sources.get("rooms").factors)
SHAPES = ("cube", "cylinder", "sphere", "capsule")
FLOOR, WALL, OBJECT = range(3)
HUES = np.array([colorsys.hsv_to_rgb(i / 6, 0.85, 0.95) for i in range(6)])
SCALES = np.linspace(0.7, 1.3, 4)
AZIMUTHS = np.radians(np.linspace(-35, 35, 7))
_TARGET, _HALF_FIELD = np.array([0.0, 0.75, 0.0]), 0.36  # what the camera looks at; half the image's side at distance 1
_WALL = 8.0
_LIGHT = np.array([0.35, 0.8, -0.5]) / np.linalg.norm([0.35, 0.8, -0.5])


def rooms(index: int, image_size: int) -> np.ndarray:
    """The room of one row of `ROOMS`: uint8, (image_size, image_size, 3).

    An image is linear in its three colours, so only the 112 combinations of scale, shape and orientation are cast.
    """
    regions = _regions(image_size)
    hues = ROOMS.factors(index)[:3]
    return np.rint(regions[index % len(regions)] @ (255 * HUES[hues])).astype(np.uint8)


@functools.cache
def _regions(image_size: int) -> np.ndarray:
    """What each of floor, wall and object gives to a pixel, as a share of its colour, for every combination of scale,
    shape and orientation, the first slowest: float64, (112, image_size, image_size, 3)."""
    made = np.empty((len(SCALES), len(SHAPES), len(AZIMUTHS), image_size, image_size, 3))
    rays = [camera(azimuth, image_size) for azimuth in AZIMUTHS]
    for a, (eye, direction) in enumerate(rays):
        room = cast_room(eye, direction)
        for s, scale in enumerate(SCALES):
            for k, shape in enumerate(SHAPES):
                region, shade = _nearest(room, cast(shape, scale, eye, direction))
                made[s, k, a] = np.stack([averaged(shade * (region == r)) for r in (FLOOR, WALL, OBJECT)], axis=-1)
    return made.reshape(-1, image_size, image_size, 3)


def camera(azimuth: float, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The eye (3,) and the directions of all samples' rays (S, S, 3), not normalised, for S samples along a side;
    the first row is the top."""
    eye = np.array([7 * np.sin(azimuth), 3.2, -7 * np.cos(azimuth)])
    forward = (_TARGET - eye) / np.linalg.norm(_TARGET - eye)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    up = np.cross(forward, right)
    at = _HALF_FIELD * (2 * samples(image_size) - 1)
    return eye, forward + at[None, :, None] * right - at[:, None, None] * up


Hit = tuple[np.ndarray, np.ndarray]  # distance along the ray, inf where it is missed; the normal there, (..., 3)


def cast_room(eye: np.ndarray, direction: np.ndarray) -> tuple[Hit, np.ndarray]:
    """Where rays meet floor or walls, and which of the two it is; the walls are turned by 45 degrees, so that a corner
    stands behind the object."""
    turned = np.radians(45 + 90 * np.arange(4))
    normals = np.array([[0, 1, 0], *np.stack([-np.cos(turned), 0 * turned, -np.sin(turned)], axis=-1)])  # inward
    offsets = np.array([0, *[_WALL] * 4])  # n.p + offset is the distance of p from the plane
    toward = direction @ normals.T
    with np.errstate(divide="ignore"):
        distances = np.where(toward < 0, -(eye @ normals.T + offsets) / toward, np.inf)
    first = distances.argmin(axis=-1)
    return (distances.min(axis=-1), normals[first]), np.where(first == 0, FLOOR, WALL)


def cast(shape: str, scale: float, eye: np.ndarray, direction: np.ndarray) -> Hit:
    """Where rays meet an object that stands on the middle of the floor."""
    match shape:
        case "cube":
            return _box(eye, direction, np.array([0, 0.75 * scale, 0]), 0.75 * scale)
        case "cylinder":
            height, radius = 1.7 * scale, 0.8 * scale
            return _first(_side(eye, direction, radius, 0, height), _cap(eye, direction, radius, height))
        case "sphere":
            return _sphere(eye, direction, np.array([0, scale, 0]), scale)
        case "capsule":
            radius, height = 0.6 * scale, 2.2 * scale
            ends = [_sphere(eye, direction, np.array([0, y, 0]), radius) for y in (radius, height - radius)]
            return _first(_side(eye, direction, radius, radius, height - radius), *ends)
    raise KeyError(shape)


def _nearest(room: tuple[Hit, np.ndarray], thing: Hit) -> tuple[np.ndarray, np.ndarray]:
    """The region that each ray meets first, and its shade there."""
    behind, region = room
    _, normal = _first(behind, thing)
    return np.where(thing[0] < behind[0], OBJECT, region), 0.45 + 0.55 * np.maximum(0, normal @ _LIGHT)


def _first(*hits: Hit) -> Hit:
    distance, normal = hits[0]
    for other, other_normal in hits[1:]:
        nearer = other < distance
        distance = np.where(nearer, other, distance)
        normal = np.where(nearer[..., None], other_normal, normal)
    return distance, normal


def _root(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The smaller solution of a t^2 + 2 b t + c = 0; inf where there is none."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num((-b - np.sqrt(b * b - a * c)) / a, nan=np.inf)


def _sphere(eye: np.ndarray, direction: np.ndarray, centre: np.ndarray, radius: float) -> Hit:
    from_centre = eye - centre
    t = _root((direction**2).sum(-1), direction @ from_centre, from_centre @ from_centre - radius**2)
    return t, (from_centre + _finite(t) * direction) / radius


def _side(eye: np.ndarray, direction: np.ndarray, radius: float, low: float, high: float) -> Hit:
    """The curved face of an upright cylinder."""
    across = np.array([1, 0, 1])
    t = _root(((direction * across) ** 2).sum(-1), direction @ (eye * across), eye @ (eye * across) - radius**2)
    point = eye + _finite(t) * direction
    inside = (low <= point[..., 1]) & (point[..., 1] <= high)
    return np.where(inside, t, np.inf), point * across / radius


def _cap(eye: np.ndarray, direction: np.ndarray, radius: float, height: float) -> Hit:
    """A disc that faces up."""
    with np.errstate(divide="ignore"):
        t = np.where(direction[..., 1] < 0, (height - eye[1]) / direction[..., 1], np.inf)
    point = eye + _finite(t) * direction
    inside = point[..., 0] ** 2 + point[..., 2] ** 2 <= radius**2
    return np.where(inside, t, np.inf), np.broadcast_to([0.0, 1.0, 0.0], direction.shape)


def _box(eye: np.ndarray, direction: np.ndarray, centre: np.ndarray, half: float) -> Hit:
    with np.errstate(divide="ignore"):
        near, far = (((centre - eye) + side * half * np.sign(direction)) / direction for side in (-1, 1))
    face = near.argmax(axis=-1)  # the slab that is entered last
    t = near.max(axis=-1)
    normal = -np.sign(direction) * (face[..., None] == np.arange(3))
    return np.where(t <= far.min(axis=-1), t, np.inf), normal


def _finite(t: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(t), t, 0)[..., None]


# ------------------------------------------------------------------------------------------------------ tiles
TILES = Grid.named(sources.get("tiles").factors)
RADII = np.linspace(0.12, 0.24, 4)  # of the circle around a shape, as a share of the image's side
TURNS = np.radians(np.arange(8) * 90 / 8)  # a square looks the same after 90 degrees
PLACES = np.linspace(RADII[-1], 1 - RADII[-1], 8)  # so every shape of every size lies wholly inside


def tiles(index: int, image_size: int) -> np.ndarray:
    """The tile of one row of `TILES`, white on black: uint8, (image_size, image_size, 3)."""
    shape, scale, turn, *place = TILES.factors(index)
    radius, (x, y) = RADII[scale], PLACES[place]
    # Only the pixels around the shape are sampled.
    columns, rows = (slice(math.floor((c - radius) * image_size), math.ceil((c + radius) * image_size)) for c in (x, y))
    at = samples(image_size).reshape(image_size, -1)
    u, v = (at[columns].reshape(1, -1) - x) / radius, (y - at[rows].reshape(-1, 1)) / radius  # v points up
    cos, sin = np.cos(TURNS[turn]), np.sin(TURNS[turn])
    grey = np.zeros((image_size, image_size))
    grey[rows, columns] = averaged(_INSIDE[shape](cos * u + sin * v, cos * v - sin * u))
    return np.repeat(np.rint(255 * grey).astype(np.uint8)[..., None], 3, axis=-1)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = 1.425 * u, 1.425 * v  # the curve's farthest points are 1.4245 from the origin
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


# Whether points lie in a shape of radius 1 around the origin: square, ellipse, heart.
_INSIDE: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= np.sqrt(0.5),
    lambda u, v: u**2 + (v / 0.6) ** 2 <= 1,
    _heart,
)
