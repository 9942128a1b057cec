"""Small copies of each data set's real layout, annotation files included, read through the same code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from small_data import save_image
from torchvision import datasets

from diffsiam import params
from diffsiam.data import prepare, published, sources
from diffsiam.data.readers import Source
from diffsiam.errors import UserError

Expected = dict[str, list[tuple[str, int]]]  # split -> (image, label) in order


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def save_all(root: Path, expected: Expected) -> None:
    for k, name in enumerate(name for items in expected.values() for name, _ in items):
        save_image(root / name, k, (9 + k % 3, 8))


# ------------------------------------------------------------------------------------- the layouts of image files
def aircraft(root: Path) -> tuple[list[str], Expected]:
    """Variants in the published order, which is not that of the alphabet everywhere; names hold spaces."""
    classes = ["DC-3", "Boeing 737-200", "Eurofighter Typhoon"]
    numbers = {
        "train": ["0000010", "0000003"],
        "val": ["0000007", "0000001"],
        "test": ["0000009", "0000002", "0000005"],
    }
    labels = {"train": [1, 2], "val": [0, 2], "test": [2, 0, 1]}
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "".join(f"{c}\n" for c in classes))
    for part, images in numbers.items():
        lines = [f"{i} {classes[k]}\n" for i, k in zip(images, labels[part], strict=True)]
        write(data / f"images_variant_{part}.txt", "".join(lines))
    folder = "fgvc-aircraft-2013b/data/images"
    return classes, {p: [(f"{folder}/{i}.jpg", k) for i, k in zip(numbers[p], labels[p], strict=True)] for p in numbers}


def dtd(root: Path) -> tuple[list[str], Expected]:
    """labels/{train,val,test}1.txt; the second partition is there and must not be read."""
    classes = ["banded", "dotted"]
    images = {
        "train": [("dtd/dtd/images/dotted/dotted_0002.jpg", 1), ("dtd/dtd/images/banded/banded_0001.jpg", 0)],
        "val": [("dtd/dtd/images/banded/banded_0005.jpg", 0), ("dtd/dtd/images/dotted/dotted_0001.jpg", 1)],
        "test": [("dtd/dtd/images/banded/banded_0009.jpg", 0), ("dtd/dtd/images/dotted/dotted_0009.jpg", 1)],
    }
    for part, items in images.items():
        lines = [name.removeprefix("dtd/dtd/images/") + "\n" for name, _ in items]
        write(root / "dtd/dtd/labels" / f"{part}1.txt", "".join(lines))
        write(root / "dtd/dtd/labels" / f"{part}2.txt", "banded/banded_9999.jpg\n")
    return classes, images


def food(root: Path) -> tuple[list[str], Expected]:
    """meta/{train,test}.json: class -> images without suffix."""
    classes = ["apple_pie", "waffles"]
    numbers = {"train": {"apple_pie": ["1005649", "1014775"], "waffles": ["971843"]}, "test": {"apple_pie": ["103801"]}}
    numbers["test"]["waffles"] = ["1005755"]
    for part, by_class in numbers.items():
        write(
            root / "food-101/meta" / f"{part}.json",
            json.dumps({c: [f"{c}/{i}" for i in images] for c, images in by_class.items()}),
        )
    return classes, {
        part: [(f"food-101/images/{c}/{i}.jpg", classes.index(c)) for c, images in by_class.items() for i in images]
        for part, by_class in numbers.items()
    }


def pets(root: Path) -> tuple[list[str], Expected]:
    """annotations/{trainval,test}.txt: image, class from 1, species, breed within the species."""
    lines = {
        "train": "Abyssinian_100 1 1 1\namerican_bulldog_12 2 2 1\nAbyssinian_101 1 1 1\n",
        "test": "Abyssinian_1 1 1 1\namerican_bulldog_100 2 2 1\n",
    }
    write(root / "oxford-iiit-pet/annotations/trainval.txt", lines["train"])
    write(root / "oxford-iiit-pet/annotations/test.txt", lines["test"])
    return ["Abyssinian", "American Bulldog"], {
        part: [(f"oxford-iiit-pet/images/{n.split()[0]}.jpg", int(n.split()[1]) - 1) for n in text.splitlines()]
        for part, text in lines.items()
    }


def cars(root: Path) -> tuple[list[str], Expected]:
    """MATLAB structures: labels from 1, class names with spaces, test labels in a file of their own."""
    classes = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    items = {
        "train": [("00001.jpg", 1), ("00002.jpg", 2), ("00003.jpg", 1)],
        "test": [("00001.jpg", 2), ("00002.jpg", 1)],
    }
    devkit = root / "stanford_cars" / "devkit"
    devkit.mkdir(parents=True)
    scipy.io.savemat(devkit / "cars_meta.mat", {"class_names": np.array(classes, dtype=object)})
    for part, path in (
        ("train", devkit / "cars_train_annos.mat"),
        ("test", devkit.parent / "cars_test_annos_withlabels.mat"),
    ):
        rows = np.zeros(len(items[part]), dtype=[("bbox_x1", "O"), ("class", "O"), ("fname", "O")])
        for row, (name, label) in zip(rows, items[part], strict=True):
            row["bbox_x1"], row["class"], row["fname"] = 5, label, name
        scipy.io.savemat(path, {"annotations": rows})
    return classes, {p: [(f"stanford_cars/cars_{p}/{n}", k - 1) for n, k in pairs] for p, pairs in items.items()}


def sun(root: Path) -> tuple[list[str], Expected]:
    """ClassName.txt and the first partition; one class has two parts, one image is in no split."""
    paths = ["/a/abbey", "/a/apse/indoor", "/b/bakery/shop"]
    lines = {
        "train": [
            "/b/bakery/shop/sun_aaa.jpg",
            "/a/abbey/sun_bbb.jpg",
            "/a/apse/indoor/sun_ccc.jpg",
            "/a/abbey/sun_ggg.jpg",
        ],
        "test": ["/a/apse/indoor/sun_ddd.jpg", "/a/abbey/sun_eee.jpg", "/b/bakery/shop/sun_fff.jpg"],
    }
    write(root / "SUN397/ClassName.txt", "".join(f"{p}\n" for p in paths))
    write(root / "SUN397-partitions/Training_01.txt", "\n".join(lines["train"]))
    write(root / "SUN397-partitions/Testing_01.txt", "\n".join(lines["test"]))
    save_image(root / "SUN397/a/abbey/sun_unused.jpg", 99)
    labels = {"train": [2, 0, 1, 0], "test": [1, 0, 2]}
    expected = {p: [(f"SUN397{n}", k) for n, k in zip(lines[p], labels[p], strict=True)] for p in lines}
    return ["abbey", "apse/indoor", "bakery/shop"], expected


LAYOUTS: dict[str, Callable[[Path], tuple[list[str], Expected]]] = {
    "Aircraft": aircraft,
    "DTD": dtd,
    "Food": food,
    "Pets": pets,
    "Cars": cars,
    "SUN": sun,
}


def check(source: Source, classes: Sequence[str], expected: Expected) -> None:
    assert list(source.classes) == list(classes)
    assert set(source.splits) == set(expected)
    for part, items in expected.items():
        split = source.splits[part]
        assert list(zip(split.names, split.labels.tolist(), strict=True)) == items
        assert split.labels.dtype == np.int64


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_small_copy_gives_its_classes_splits_and_labels(tmp_path: Path, name: str) -> None:
    classes, expected = LAYOUTS[name](tmp_path)
    save_all(tmp_path, expected)
    source = published.read(sources.get(name), tmp_path, 0, 8)
    check(source, classes, expected)
    assert ("val" in source.splits) == sources.get(name).own_val
    image = source.splits["test"].load(1)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / expected["test"][1][0]).convert("RGB")))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_small_copy_is_prepared_from_torchvisions_layout(tmp_path: Path, cfg: params.Data, name: str) -> None:
    root = Path(cfg.root)
    classes, expected = LAYOUTS[name](root)
    save_all(root, expected)
    prepare.run(name, dataclasses.replace(cfg, val_fraction=0.4), tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    joined = expected["train"] + expected.get("val", [])
    assert np.load(tmp_path / "out" / "labels_train.npy").tolist() == [k for _, k in joined]
    assert meta["classes"] == classes
    assert meta["metric"] == sources.get(name).metric
    assert meta["counts"] == {"train": len(joined), "test": len(expected["test"])}
    assert meta["source"]["kind"] == "torchvision"
    if sources.get(name).own_val:
        assert meta["splits"]["val"] == list(range(len(expected["train"]), len(joined)))


# -------------------------------------------------------------------------------- those that torchvision verifies
def test_flowers_are_read_through_torchvisions_class(tmp_path: Path) -> None:
    base = tmp_path / "flowers-102"
    base.mkdir()
    labels = np.array([[77, 1, 102, 1, 77, 102]])  # of images 1..6, from 1
    ids = {"trnid": np.array([[2, 1]]), "valid": np.array([[3, 4]]), "tstid": np.array([[6, 5]])}
    scipy.io.savemat(base / "imagelabels.mat", {"labels": labels})
    scipy.io.savemat(base / "setid.mat", ids)
    md5 = {f: hashlib.md5((base / f).read_bytes()).hexdigest() for f in ("imagelabels.mat", "setid.mat")}

    class SmallFlowers(datasets.Flowers102):
        _file_dict = {  # noqa: RUF012 (torchvision's own form)
            "image": ("102flowers.tgz", ""),
            "label": ("imagelabels.mat", md5["imagelabels.mat"]),
            "setid": ("setid.mat", md5["setid.mat"]),
        }

    expected = {
        "train": [("flowers-102/jpg/image_00002.jpg", 0), ("flowers-102/jpg/image_00001.jpg", 76)],
        "val": [("flowers-102/jpg/image_00003.jpg", 101), ("flowers-102/jpg/image_00004.jpg", 0)],
        "test": [("flowers-102/jpg/image_00006.jpg", 101), ("flowers-102/jpg/image_00005.jpg", 76)],
    }
    save_all(tmp_path, expected)
    row = sources.get("Flowers")
    check(
        published.listed(row, tmp_path, SmallFlowers, ("train", "val", "test")), datasets.Flowers102.classes, expected
    )
    with pytest.raises(UserError, match=r"Flowers: the copy .* cannot be read: .*corrupted"):
        published.read(row, tmp_path, 0, 8)  # these are not the published lists


def cifar_files(folder: Path, key: str, batches: dict[str, int], names: dict[str, list[str]]) -> dict[str, str]:
    """Pickles as the CIFAR page describes them: rows of 3072 bytes, channel by channel; returns their md5."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for file, count in batches.items():
        entry = {"data": rng.integers(0, 256, (count, 3072), np.uint8), key: (np.arange(count) % 2).tolist()}
        (folder / file).write_bytes(pickle.dumps(entry, protocol=2))
    meta = "batches.meta" if key == "labels" else "meta"
    (folder / meta).write_bytes(pickle.dumps(names, protocol=2))
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_cifar_pickles_are_read_through_torchvisions_class(tmp_path: Path) -> None:
    base = tmp_path / "cifar-10-batches-py"
    md5 = cifar_files(
        base, "labels", {"data_batch_1": 4, "data_batch_2": 3, "test_batch": 2}, {"label_names": ["airplane", "cat"]}
    )

    class Small(datasets.CIFAR10):
        train_list = [["data_batch_1", md5["data_batch_1"]], ["data_batch_2", md5["data_batch_2"]]]  # noqa: RUF012
        test_list = [["test_batch", md5["test_batch"]]]  # noqa: RUF012
        meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}  # noqa: RUF012

    source = published.cifar(sources.get("CIFAR10"), tmp_path, Small)
    assert source.classes == ["airplane", "cat"]
    assert source.splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    row = pickle.loads((base / "data_batch_2").read_bytes())["data"][1]
    expected = np.stack(
        [row[:1024].reshape(32, 32), row[1024:2048].reshape(32, 32), row[2048:].reshape(32, 32)], axis=2
    )
    assert np.array_equal(np.asarray(source.splits["train"].load(5)), expected)
    assert len(source.splits["test"]) == 2


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    names = {"fine_label_names": ["apple", "baby"], "coarse_label_names": ["fruit", "people"]}
    md5 = cifar_files(tmp_path / "cifar-100-python", "fine_labels", {"train": 4, "test": 2}, names)

    class Small(datasets.CIFAR100):
        train_list = [["train", md5["train"]]]  # noqa: RUF012
        test_list = [["test", md5["test"]]]  # noqa: RUF012
        meta = {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]}  # noqa: RUF012

    source = published.cifar(sources.get("CIFAR100"), tmp_path, Small)
    assert source.classes == ["apple", "baby"]
    assert source.splits["train"].labels.tolist() == [0, 1, 0, 1]


def test_a_cifar_pickle_with_another_checksum_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "loaded",)

    folder = tmp_path / "cifar-10-batches-py"
    cifar_files(folder, "labels", {f"data_batch_{i}": 1 for i in range(1, 6)} | {"test_batch": 1}, {})
    for path in folder.iterdir():
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"CIFAR10: the copy .* corrupted.*cifar-10-batches-py"):
        published.read(sources.get("CIFAR10"), tmp_path, 0, 8)
    assert not (tmp_path / "loaded").exists()


# ---------------------------------------------------------------------------------------------------- Caltech-101
CALTECH = {"BACKGROUND_Google": 40, "Faces": 31, "accordion": 33}


def make_caltech(root: Path, counts: dict[str, int]) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for c, (name, count) in enumerate(counts.items()):
        for i in range(1, count + 1):
            save_image(folder / name / f"image_{i:04d}.jpg", 100 * c + i)
    (folder / "BACKGROUND_Google" / "tmp").touch()  # the published archive holds this empty file


def test_caltech_keeps_its_background_and_trains_on_30_of_each_class(tmp_path: Path) -> None:
    make_caltech(tmp_path, CALTECH)
    source = published.read(sources.get("Caltech"), tmp_path, 0, 8)
    assert source.classes == ["BACKGROUND_Google", "Faces", "accordion"]
    train, test = source.splits["train"], source.splits["test"]
    assert np.bincount(train.labels).tolist() == [30, 30, 30]
    assert np.bincount(test.labels).tolist() == [10, 1, 3]
    assert len({*train.names, *test.names}) == sum(CALTECH.values())
    for split in (train, test):
        for name, label in zip(split.names, split.labels, strict=True):
            assert Path(name).parent.name == source.classes[label]


def test_caltechs_split_follows_the_seed_and_not_the_other_classes(tmp_path: Path) -> None:
    make_caltech(tmp_path / "a", CALTECH)
    make_caltech(tmp_path / "b", {k: v for k, v in CALTECH.items() if k != "Faces"})
    row = sources.get("Caltech")
    names = {
        (copy, seed): published.read(row, tmp_path / copy, seed, 8).splits["test"].names
        for copy in "ab"
        for seed in (0, 1)
    }
    assert names["a", 0] != names["a", 1]
    assert [n for n in names["a", 0] if "Faces" not in n] == names["b", 0]


def test_hidden_files_and_folders_change_no_split(tmp_path: Path) -> None:
    make_caltech(tmp_path, CALTECH)
    before = published.read(sources.get("Caltech"), tmp_path, 0, 8)
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    (folder / "accordion" / "._image_0001.jpg").write_bytes(b"\0\5\26\7")
    save_image(folder / ".ipynb_checkpoints" / "image_0001.jpg", 0)
    after = published.read(sources.get("Caltech"), tmp_path, 0, 8)
    assert after.classes == before.classes
    assert {part: split.names for part, split in after.splits.items()} == {
        part: split.names for part, split in before.splits.items()
    }


def test_a_caltech_class_without_test_images_is_named(tmp_path: Path) -> None:
    make_caltech(tmp_path, CALTECH | {"Faces": 30})
    with pytest.raises(UserError, match="class Faces has 30 images, needed are more than 30"):
        published.read(sources.get("Caltech"), tmp_path, 0, 8)


# ------------------------------------------------------------------------------------------------ damaged copies
@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("Aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", None),
        ("Aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", "0000009 Concorde\n"),
        ("DTD", "dtd/dtd/labels/test1.txt", "banded/banded_0009.jpg\n"),
        ("Food", "food-101/meta/train.json", '{"apple_pie": ['),
        ("Pets", "oxford-iiit-pet/annotations/test.txt", "Abyssinian_1 1 1\nbeagle_100 2 2 1\n"),
        ("Cars", "stanford_cars/devkit/cars_train_annos.mat", "cut off"),
        ("Cars", "stanford_cars/devkit/cars_train_annos.mat", "MATLAB 5.0" + " " * 114 + "\0\1IM" + "x" * 99),
        ("SUN", "SUN397-partitions/Testing_01.txt", "/z/zoo/sun_aaa.jpg\n"),
    ],
)
def test_damaged_lists_are_one_message_that_names_the_files(
    tmp_path: Path, name: str, file: str, text: str | None
) -> None:
    LAYOUTS[name](tmp_path)
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=f"{name}: the copy in torchvision's layout cannot be read") as e:
        published.read(sources.get(name), tmp_path, 0, 8)
    assert file.split("/")[0] in str(e.value)


def test_a_listed_image_that_is_not_there_is_named(tmp_path: Path, cfg: params.Data) -> None:
    _, expected = dtd(Path(cfg.root))
    save_all(Path(cfg.root), expected)
    (Path(cfg.root) / "dtd/dtd/images/dotted/dotted_0009.jpg").unlink()
    with pytest.raises(UserError, match=r"DTD: 1 of 2 test images are missing.*dtd/dtd/images/dotted/dotted_0009\.jpg"):
        prepare.run("DTD", cfg, tmp_path / "out")
