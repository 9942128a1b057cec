"""Rooms against a sphere-traced scene of distance functions, tiles against areas and moments of their shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from diffsiam.data import embedded, scenes, sources
from diffsiam.data.scenes import ROOMS, TILES

Field = Callable[[np.ndarray], np.ndarray]  # points (..., 3) to distances


# ------------------------------------------------------------------------------------------ an independent renderer
def distances(shape: str, s: float) -> list[Field]:
    """Signed distances of floor, walls and object, of the scene that `rooms` shows."""

    def walls(p: np.ndarray) -> np.ndarray:
        along = [(p[..., 0] * a + p[..., 2] * b) / np.sqrt(2) for a, b in itertools.product((1, -1), (1, -1))]
        return 8 - np.max(along, axis=0)

    def box(p: np.ndarray) -> np.ndarray:
        q = np.abs(p - [0, 0.75 * s, 0]) - 0.75 * s
        return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)

    def cylinder(p: np.ndarray) -> np.ndarray:
        q = np.stack([np.hypot(p[..., 0], p[..., 2]) - 0.8 * s, np.abs(p[..., 1] - 0.85 * s) - 0.85 * s], -1)
        return np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)

    def capsule(p: np.ndarray) -> np.ndarray:
        on_axis = np.clip(p[..., 1], 0.6 * s, 1.6 * s)[..., None] * np.array([0, 1, 0])
        return np.linalg.norm(p - on_axis, axis=-1) - 0.6 * s

    thing = {"cube": box, "cylinder": cylinder, "capsule": capsule}
    thing["sphere"] = lambda p: np.linalg.norm(p - [0, s, 0], axis=-1) - s
    return [lambda p: p[..., 1], walls, thing[shape]]


def traced(scale: int, shape: int, orientation: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Region and shade (4 side, 4 side) of every sample, by steps along its ray and differences of distances."""
    fields = distances(("cube", "cylinder", "sphere", "capsule")[shape], (0.7, 0.9, 1.1, 1.3)[scale])
    a = np.radians(-35 + 70 * orientation / 6)
    eye, target = np.array([7 * np.sin(a), 3.2, -7 * np.cos(a)]), np.array([0, 0.75, 0])
    ahead = (target - eye) / np.linalg.norm(target - eye)
    right = np.array([np.cos(a), 0, np.sin(a)])  # level, and to the right of someone who looks along ahead
    above = np.cross(ahead, right)
    at = 0.36 * (np.arange(4 * side) - 2 * side + 0.5) / (2 * side)
    rays = np.array([[ahead + x * right - y * above for x in at] for y in at])
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    t = np.zeros(rays.shape[:2])
    for _ in range(150):
        t += np.min([f(eye + t[..., None] * rays) for f in fields], axis=0)
    hit = eye + t[..., None] * rays
    region = np.argmin([f(hit) for f in fields], axis=0)
    steps = 1e-4 * np.eye(3)
    slope = [np.choose(region, [f(hit + h) - f(hit - h) for f in fields]) / 2e-4 for h in steps]
    light = np.array([0.35, 0.8, -0.5]) / np.sqrt(0.35**2 + 0.8**2 + 0.5**2)
    return region, 0.45 + 0.55 * np.maximum(0, np.tensordot(light, slope, 1))


GEOMETRIES = [(3, 0, 1), (0, 1, 6), (2, 2, 3), (1, 3, 0)]  # scale, shape, orientation


@pytest.fixture(scope="module", params=GEOMETRIES, ids=str)
def scene(request: pytest.FixtureRequest) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """A geometry, its samples' regions, and their shades."""
    return request.param, *traced(*request.param, 16)


def shares(values: np.ndarray) -> np.ndarray:
    return values.reshape(16, 4, 16, 4).mean(axis=(1, 3))


def test_a_room_is_what_tracing_its_distances_shows(scene: tuple[tuple[int, ...], np.ndarray, np.ndarray]) -> None:
    geometry, region, shade = scene
    hues = np.array([[242, 36, 36], [242, 242, 36], [36, 242, 36], [36, 242, 242], [36, 36, 242], [242, 36, 242]])
    chosen = (0, 4, 2)
    expected = sum(shares(shade * (region == r))[..., None] * hues[chosen[r]] for r in range(3))
    image = scenes.rooms(int(ROOMS.index([*chosen, *geometry])), 16).astype(float)
    off = np.abs(image - expected).max(axis=-1)
    assert (off > 2).mean() < 0.05  # samples on an edge fall to either side
    assert off.mean() < 1


def test_a_hue_changes_the_pixels_of_its_region_and_no_other(
    scene: tuple[tuple[int, ...], np.ndarray, np.ndarray],
) -> None:
    geometry, region, _ = scene
    for r, (one, other) in itertools.product(range(3), ((0, 3), (1, 2))):
        rows = [[5, 5, 5, *geometry] for _ in range(2)]
        rows[0][r], rows[1][r] = one, other
        first, second = (scenes.rooms(int(ROOMS.index(row)), 16) for row in rows)
        changed = (first != second).any(axis=-1)
        assert 0 < changed.sum() < 256
        share = shares((region == r).astype(float))
        assert not changed[share == 0].any()
        assert changed[share > 1 / 16].all()


@pytest.mark.parametrize("shape", range(4))
def test_orientation_moves_the_corner_behind_every_shape(shape: int) -> None:
    columns = []
    for orientation in range(7):
        top = scenes.rooms(int(ROOMS.index([0, 3, 0, 0, shape, orientation])), 64)[0, :, 1].astype(int)
        jumps = np.flatnonzero(np.abs(np.diff(top)) > 20)
        columns.append(jumps.mean() + 1 if len(jumps) else None)
    angles = np.radians(np.linspace(-35, 35, 7))
    depth = 8 * np.sqrt(2)  # of the corner behind the middle
    pitch = np.arctan2(3.2 - 0.75, 7)  # of the camera, down
    level = np.cos(pitch) + 0.36 * 63 / 64 * np.sin(pitch)  # how far over the ground a ray of the top row goes by 1
    for column, a in zip(columns, angles, strict=True):
        right, ahead = depth * np.sin(a), 7 + depth * np.cos(a)  # the corner's, as seen from above
        expected = 32 * (1 + right / ahead * level / 0.36)
        if column is None:
            assert not 0 < expected < 64
        else:
            assert column == pytest.approx(expected, abs=1)
    assert sum(column is not None for column in columns) >= 5


@pytest.mark.parametrize(("render", "grid"), [(scenes.rooms, ROOMS), (scenes.tiles, TILES)], ids=["rooms", "tiles"])
def test_all_images_of_a_grid_differ(render: Callable[[int, int], np.ndarray], grid: scenes.Grid) -> None:
    assert grid.size == {6: 24_192, 5: 6_144}[len(grid.sizes)]
    assert len({render(i, 32).tobytes() for i in range(grid.size)}) == grid.size


# -------------------------------------------------------------------------------------------------------- tiles
def tile(*factors: int, side: int = 64) -> np.ndarray:
    """How much of each pixel is covered, (side, side)."""
    image = scenes.tiles(int(TILES.index(factors)), side)
    assert (image == image[..., :1]).all()
    return image[..., 0] / 255


def heart_area() -> float:
    """Of the curve (x^2 + y^2 - 1)^3 = x^2 y^3, by counting points."""
    x, y = np.meshgrid(*[np.linspace(-1.5, 1.5, 3001)] * 2)
    return ((x**2 + y**2 - 1) ** 3 <= x**2 * y**3).mean() * 9


AREAS = [2.0, 0.6 * np.pi, heart_area() / 1.425**2]  # in a circle of radius 1


@pytest.mark.parametrize("shape", range(3), ids=["square", "ellipse", "heart"])
def test_a_tiles_area_is_its_shapes_at_every_scale_turn_and_place(shape: int) -> None:
    for scale, turn in itertools.product(range(4), (0, 3, 7)):
        expected = AREAS[shape] * np.linspace(0.12, 0.24, 4)[scale] ** 2
        for x, y in ((0, 0), (7, 7), (0, 7), (3, 4)):  # in a corner too: it lies wholly inside
            assert tile(shape, scale, turn, x, y).mean() == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("shape", [0, 1])
def test_a_tile_lies_where_its_factors_say(shape: int, side: int) -> None:
    at = (np.arange(side) + 0.5) / side
    for x, y in itertools.product((0, 2, 7), (0, 5, 7)):
        covered = tile(shape, 1, 2, x, y, side=side)
        mean = [(covered.sum(axis=axis) * at).sum() / covered.sum() for axis in (0, 1)]
        assert mean == pytest.approx([0.24 + 0.52 * x / 7, 0.24 + 0.52 * y / 7], abs=0.02 / side * 16)


def test_the_ellipses_long_axis_turns_by_an_eighth_of_a_right_angle_at_a_time() -> None:
    at = (np.arange(64) + 0.5) / 64
    for turn in range(8):
        covered = tile(1, 3, turn, 3, 3)
        x, y = np.meshgrid(at, -at)  # y points up
        x, y = x - np.average(x, weights=covered), y - np.average(y, weights=covered)
        xx, yy, xy = (np.average(moment, weights=covered) for moment in (x * x, y * y, x * y))
        angle = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))
        assert angle % 180 == pytest.approx(turn * 90 / 8, abs=1)


# ------------------------------------------------------------------------------------------------------ sources
@pytest.mark.parametrize(("name", "render"), [("rooms", scenes.rooms), ("tiles", scenes.tiles)])
def test_a_source_is_its_grid_in_order(name: str, render: Callable[[int, int], np.ndarray]) -> None:
    source, row = embedded.source(name, 16, 0), sources.get(name)
    assert list(source.splits) == ["train"]
    train = source.splits["train"]
    assert len(train) == row.train
    assert not row.labelled
    assert row.embedded
    for i in (0, 1, row.train // 2, row.train - 1):
        image = train.load(i)
        assert isinstance(image, Image.Image)
        assert np.array_equal(np.asarray(image), render(i, 16))
