from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffsiam.data import embedded, sources


@pytest.mark.parametrize("name", ["digits", "photos", "sprites"])
def test_embedded_sets_have_the_counts_of_the_table_and_every_class_in_both_splits(name: str) -> None:
    source = embedded.source(name, 16, 0)
    train, test = source.splits["train"], source.splits["test"]
    row = sources.get(name)
    assert row.embedded
    assert (len(source.classes), len(train), len(test)) == (row.classes, row.train, row.test)
    for split in (train, test):
        assert set(split.labels.tolist()) == set(range(row.classes))
    assert not set(train.names) & set(test.names)


@pytest.mark.parametrize("name", ["digits", "photos", "sprites"])
@pytest.mark.parametrize("split_seed", [0, 5])
def test_embedded_sets_have_the_class_sizes_and_attributes_that_parameters_are_checked_against(
    name: str, split_seed: int
) -> None:
    made, row = embedded.source(name, 16, split_seed), sources.get(name)
    assert tuple(np.bincount(made.splits["test"].labels)) == row.test_sizes
    assert tuple(made.attributes) == row.attributes
    assert bool(made.targets) == row.targets


def test_digits_are_scikit_learns_and_every_one_is_used_once() -> None:
    images, labels = load_digits(return_X_y=True)
    met = []
    for split in embedded.digits(0).splits.values():
        for i, name in enumerate(split.names):
            k = int(name.split()[1])
            met.append(k)
            image = np.asarray(split.load(i))
            assert split.labels[i] == labels[k]
            assert (image == image[..., :1]).all()
            assert np.abs(image[..., 0] / 255 - images[k].reshape(8, 8) / 16).max() < 0.5 / 255 + 1e-9
    assert sorted(met) == list(range(1797))


def test_digits_test_part_is_a_third_of_every_class_and_follows_the_seed() -> None:
    source = embedded.digits(0)
    test = np.bincount(source.splits["test"].labels)
    assert (np.abs(test - np.bincount(load_digits().target) / 3) < 1).all()
    assert source.splits["test"].names != embedded.digits(1).splits["test"].names
    assert source.splits["test"].names == embedded.digits(0).splits["test"].names


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (64, 64)])
def test_photo_crops_of_train_and_test_never_share_a_pixel(size: tuple[int, int]) -> None:
    for i in range(200):
        left, upper, right, lower = embedded.crop_box(size, "train", f"a/{i}")
        assert right - left == lower - upper > 0
        assert 0 <= left < right <= size[0] // 2
        assert 0 <= upper < lower <= size[1]
        left, upper, right, lower = embedded.crop_box(size, "test", f"a/{i}")
        assert size[0] - size[0] // 2 <= left < right <= size[0]
        assert 0 <= upper < lower <= size[1]


def test_photos_show_different_parts_of_colour_photographs() -> None:
    source = embedded.photos()
    for split in source.splits.values():
        for c in range(len(source.classes)):
            first = np.flatnonzero(split.labels == c)[:5]
            crops = [np.asarray(split.load(int(i)).resize((8, 8))).astype(int) for i in first]
            assert np.ptp(np.stack(crops), axis=-1).max() > 20, source.classes[c]  # not grey
            assert len({c.tobytes() for c in crops}) == 5


def shape(name: str) -> embedded.Sprite:
    return embedded.Sprite(embedded.SHAPES.index(name), 0, 0.3, 0.5, 0.5, 0.1)


# Areas of the unit shapes by school geometry; the star is ten triangles with sides 1 and 0.45 around 36 degrees.
AREAS = {
    "circle": np.pi,
    "square": 1.7**2,
    "triangle": 3 * np.sqrt(3) / 4,
    "star": 10 * 0.5 * 0.45 * np.sin(np.pi / 5),
    "cross": 2 * 2 * 0.6 - 0.6**2,
    "ring": np.pi * 0.7,
}


@pytest.mark.parametrize("name", embedded.SHAPES)
@pytest.mark.parametrize(("image_size", "tolerance"), [(16, 0.06), (64, 0.02)])
def test_a_sprites_coverage_is_its_shapes_area(name: str, image_size: int, tolerance: float) -> None:
    red = embedded.render(shape(name), image_size)[..., 0].astype(float)
    background, colour = 0.1 * 255, embedded.COLOURS["Red"][0]
    coverage = ((red - background) / (colour - background)).mean()
    assert coverage == pytest.approx(AREAS[name] * 0.3**2, rel=tolerance)


def test_a_sprite_is_anti_aliased_and_looks_alike_at_every_size() -> None:
    small, large = (embedded.render(shape("star"), size) for size in (16, 64))
    assert len(np.unique(small[..., 0])) > 4  # not only colour and background
    averaged = large.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(averaged - small).mean() < 2


def test_sprites_lie_wholly_inside_the_image() -> None:
    for i in range(300):
        sprite = embedded.draw_factors("test", i)
        assert sprite.radius <= sprite.x <= 1 - sprite.radius
        assert sprite.radius <= sprite.y <= 1 - sprite.radius


def test_sprite_attributes_say_what_is_in_the_picture() -> None:
    source = embedded.sprites(32)
    split = source.splits["train"]
    assert split.attributes is not None
    assert split.attributes.shape == (3000, len(source.attributes))
    for i in range(120):
        has = dict(zip(source.attributes, split.attributes[i].tolist(), strict=True))
        image = np.asarray(split.load(i)).astype(float)
        corner = image[[0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=1)
        background = np.median(corner)
        weight = np.abs(image - background).sum(axis=2)
        ys, xs = np.nonzero(weight > 60)
        middle = image[weight > 0.9 * weight.max()].mean(axis=0)
        nearest = min(embedded.COLOURS, key=lambda c: np.abs(middle - embedded.COLOURS[c]).sum())
        assert has["Dark background"] == (background < 128)
        assert has[source.classes[split.labels[i]].title()] == 1
        assert has[nearest] == 1
        assert sum(has[c] for c in embedded.COLOURS) == sum(has[s.title()] for s in embedded.SHAPES) == 1
        if abs(xs.mean() - 15.5) > 1:
            assert has["Left"] == (xs.mean() < 15.5)
        if abs((ys.min() + ys.max()) / 2 - 15.5) > 3:  # a triangle's box is higher than its centre
            assert has["Top"] == ((ys.min() + ys.max()) / 2 < 15.5)


def test_sprite_targets_are_where_and_how_large_the_sprite_is_in_the_picture() -> None:
    source = embedded.sprites(64)
    split = source.splits["train"]
    assert split.targets is not None
    assert (split.targets.shape, split.targets.dtype) == ((3000, 4), np.float32)
    for i in [i for i in range(120) if source.classes[split.labels[i]] in ("circle", "ring")]:
        at = dict(zip(source.targets, split.targets[i].tolist(), strict=True))
        image = np.asarray(split.load(i)).astype(float)
        ys, xs = np.nonzero(np.abs(image - image[0, 0]).sum(axis=2) > 30)  # of 64 pixels a corner is background
        assert at["Background"] == pytest.approx(image[0, 0, 0] / 255, abs=1 / 255)
        assert at["X"] == pytest.approx((xs.min() + xs.max() + 1) / 128, abs=0.02)
        assert at["Y"] == pytest.approx((ys.min() + ys.max() + 1) / 128, abs=0.02)
        assert at["Radius"] == pytest.approx((xs.max() - xs.min() + 1) / 128, abs=0.02)


def test_sprite_factors_are_balanced_and_independent_of_the_class() -> None:
    split = embedded.sprites(16).splits["train"]
    assert split.attributes is not None
    assert np.bincount(split.labels).tolist() == [500] * 6
    factors = split.attributes[:, 6:].astype(float)
    assert (np.abs(factors.mean(axis=0) - [*[1 / 6] * 6, *[0.5] * 4]) < 0.04).all()
    correlation = np.corrcoef(factors[:, 6:].T) - np.eye(4)
    assert np.abs(correlation).max() < 0.08
    for c in range(6):
        assert np.abs(factors[split.labels == c].mean(axis=0) - factors.mean(axis=0)).max() < 0.08


def test_embedded_images_are_the_same_in_every_run() -> None:
    a, b = (embedded.source("photos", 16, seed).splits["test"] for seed in (0, 1))
    assert a.load(7).tobytes() == b.load(7).tobytes()
    a, b = (embedded.source("sprites", 16, seed).splits["test"] for seed in (0, 1))
    assert a.load(7).tobytes() == b.load(7).tobytes()
    assert isinstance(a.load(0), Image.Image)
