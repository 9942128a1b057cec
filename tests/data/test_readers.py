from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import make_folders, make_tar, save_image

from diffsiam.data import readers
from diffsiam.errors import UserError

COUNTS = {"train": {"b": 2, "a": 1}, "test": {"a": 1, "b": 1}}


def pixels(split: readers.Split) -> np.ndarray:
    return np.stack([np.asarray(split.load(i)) for i in range(len(split))])


def test_class_folders_sort_classes_and_images_and_keep_the_pixels(tmp_path: Path) -> None:
    make_folders(tmp_path / "Food", COUNTS)
    source = readers.class_folders("Food", tmp_path)
    train = source.splits["train"]
    assert source.classes == ["a", "b"]
    assert train.names == ["train/a/000.png", "train/b/000.png", "train/b/001.png"]
    assert train.labels.tolist() == [0, 1, 1]
    assert train.labels.dtype == np.int64
    expected = [np.asarray(Image.open(tmp_path / "Food" / n)) for n in train.names]
    assert np.array_equal(pixels(train), expected)
    assert source.origin == {"kind": "class folders", "folder": "Food"}


def test_files_that_are_no_images_are_not_read(tmp_path: Path) -> None:
    top = make_folders(tmp_path / "Food", COUNTS)
    for name in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (top / "train" / "a" / name).write_bytes(b"x")
    (top / "train" / ".cache").mkdir()
    save_image(top / "train" / "a" / "UPPER.JPEG", 5)
    source = readers.class_folders("Food", tmp_path)
    assert source.classes == ["a", "b"]
    assert source.splits["train"].names[:2] == ["train/a/000.png", "train/a/UPPER.JPEG"]


@pytest.mark.parametrize("arcname", ["Food", ".", "./Food"])
def test_a_tar_gives_what_its_folders_give(tmp_path: Path, arcname: str) -> None:
    make_folders(tmp_path / "Food", {**COUNTS, "val": {"b": 1}})
    make_tar(tmp_path / "Food.tar", tmp_path / "Food", arcname)
    folders, tar = readers.class_folders("Food", tmp_path), readers.tar("Food", tmp_path)
    assert tar.classes == folders.classes
    assert set(tar.splits) == {"train", "val", "test"}
    for part, split in folders.splits.items():
        assert tar.splits[part].names == split.names
        assert np.array_equal(tar.splits[part].labels, split.labels)
        assert np.array_equal(pixels(tar.splits[part]), pixels(split))
    assert tar.origin == {"kind": "tar", "file": "Food.tar"}


def test_an_image_added_to_a_tar_twice_counts_once_as_the_last(tmp_path: Path) -> None:
    top = make_folders(tmp_path / "new" / "Food", COUNTS)
    make_tar(tmp_path / "Food.tar", top, "Food")
    save_image(top / "train" / "a" / "000.png", 77)
    make_tar(tmp_path / "Food.tar", top / "train" / "a", "Food/train/a", mode="a")
    train = readers.tar("Food", tmp_path).splits["train"]
    assert len(train) == 3
    assert np.array_equal(np.asarray(train.load(0)), np.asarray(Image.open(top / "train" / "a" / "000.png")))


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "tar"])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"test": {"a": 1}}, "no train images"),
        ({"train": {"a": 1}}, "no test images"),
        ({"train": {}, "test": {"a": 1}}, "no train images"),
        ({"train": {"a": 1, "b": 0}, "test": {"a": 1, "b": 1}}, r"train has classes without a single image: 1 \(b\)"),
        ({"train": {"a": 1}, "test": {"a": 1, "cat": 1}}, r"test has classes that train has not: 1 \(cat\)"),
        ({"train": {"a": 1, "cat": 1}, "test": {"a": 1}}, r"train has classes that test has not: 1 \(cat\)"),
        ({"train": {"a": 1}, "val": {"dog": 1}, "test": {"a": 1}}, r"val has classes that train has not: 1 \(dog\)"),
    ],
)
def test_an_incomplete_set_is_refused_with_what_is_missing(
    tmp_path: Path, packed: bool, counts: dict[str, dict[str, int]], message: str
) -> None:
    make_folders(tmp_path / "Food", counts)
    if packed:
        make_tar(tmp_path / "Food.tar", tmp_path / "Food", "Food")
    read = readers.tar if packed else readers.class_folders
    with pytest.raises(UserError, match=message):
        read("Food", tmp_path)


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("/etc/x.png"),
        member("../x.png"),
        member("Food/train/a/../../../../x.png"),
        member("Food/train/a/x.png", tarfile.SYMTYPE),
        member("Food/train/a/x.png", tarfile.LNKTYPE),
        member("Food/train/a/x.png", tarfile.FIFOTYPE),
    ],
    ids=["absolute", "parent", "inner parent", "symlink", "hard link", "fifo"],
)
def test_a_tar_that_reaches_outside_is_refused_by_the_members_name(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    make_tar(tmp_path / "Food.tar", make_folders(tmp_path / "x" / "Food", COUNTS), "Food")
    with tarfile.open(tmp_path / "Food.tar", "a") as archive:
        archive.addfile(bad, io.BytesIO())
    with pytest.raises(UserError, match="refused") as e:
        readers.tar("Food", tmp_path)
    assert bad.name in str(e.value)


@pytest.mark.parametrize("where", ["between members", "in a header", "in an image", "before the end mark"])
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, where: str) -> None:
    path = make_tar(tmp_path / "Food.tar", make_folders(tmp_path / "x" / "Food", COUNTS), "Food")
    with tarfile.open(path) as archive:
        image, last = archive.getmember("Food/test/b/000.png"), archive.getmembers()[-1]
    lengths = {
        "between members": image.offset,
        "in a header": image.offset_data - 100,
        "in an image": image.offset_data + 100,
        "before the end mark": last.offset_data + tarfile.BLOCKSIZE,
    }
    os.truncate(path, lengths[where])
    with pytest.raises(UserError, match=r"Food\.tar: not a whole, uncompressed tar"):
        readers.tar("Food", tmp_path)


def test_a_tar_damaged_between_members_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "Food.tar", make_folders(tmp_path / "x" / "Food", COUNTS), "Food")
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[-1].offset
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(b"garbage" * 20)
    with pytest.raises(UserError, match=r"Food\.tar: not a whole, uncompressed tar"):
        readers.tar("Food", tmp_path)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    make_tar(tmp_path / "Food.tar", make_folders(tmp_path / "x" / "Food", COUNTS), "Food", mode="w:gz")
    with pytest.raises(UserError, match=r"Food\.tar: not a whole, uncompressed tar"):
        readers.tar("Food", tmp_path)


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "LA", "1", "CMYK"):
        Image.new(mode, (3, 2)).save(tmp_path / "x.tiff", format="TIFF")
        image = readers.decode(tmp_path / "x.tiff")
        assert (image.mode, image.size) == ("RGB", (3, 2)), mode


def test_stratified_draws_the_share_of_every_class_and_in_total() -> None:
    labels = np.repeat(np.arange(5), [1, 2, 33, 47, 100])
    chosen = readers.stratified(labels, 0.2, np.random.default_rng(0))
    counts = np.bincount(labels[chosen], minlength=5)
    assert (np.diff(chosen) > 0).all()
    assert counts[0] == 0  # the only image of a class is never drawn
    assert counts.sum() == round(0.2 * len(labels))
    assert (np.abs(counts - 0.2 * np.array([1, 2, 33, 47, 100])) < 1).all()


def test_stratified_is_exact_where_the_share_is_whole() -> None:
    labels = np.tile(np.arange(10), 15)
    chosen = readers.stratified(labels, 0.2, np.random.default_rng(3))
    assert np.bincount(labels[chosen]).tolist() == [3] * 10
    assert not np.array_equal(chosen, readers.stratified(labels, 0.2, np.random.default_rng(4)))


def test_stratified_leaves_one_of_every_class_however_large_the_share() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    left = np.delete(labels, readers.stratified(labels, 0.9, np.random.default_rng(0)))
    assert np.bincount(left).tolist() == [1, 1, 1]
