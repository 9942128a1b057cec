from __future__ import annotations

import io
import os
import subprocess
import tarfile
import unicodedata
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


def read_both(tmp_path: Path) -> list[readers.Source]:
    """The folder ``Food`` of ``tmp_path`` read as it is, and from a tar."""
    make_tar(tmp_path / "Food.tar", tmp_path / "Food", "Food")
    return [readers.class_folders("Food", tmp_path), readers.tar("Food", tmp_path)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.webp", "WEBP"),
        ("x.bmp", "BMP"),
        ("x.TIF", "TIFF"),
        ("x.gif", "GIF"),
        ("x.avif", "AVIF"),
        ("x.jfif", "JPEG"),
        ("x.jpe", "JPEG"),
        ("x.jpg.1", "JPEG"),
        ("x.jpg?size=large", "JPEG"),
        ("0a1b2c", "PNG"),
        ("deep/er/x.png", "PNG"),
    ],
)
def test_what_pillow_reads_is_read_whatever_its_suffix_and_at_any_depth(tmp_path: Path, name: str, kind: str) -> None:
    top = make_folders(tmp_path / "Food", COUNTS)
    image = Image.fromarray(np.full((6, 6, 3), 77, np.uint8))
    (top / "train" / "b" / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(top / "train" / "b" / name, kind)
    for source in read_both(tmp_path):
        train = source.splits["train"]
        assert train.labels.tolist() == [0, 1, 1, 1]
        read = np.asarray(train.load(list(train.names).index(f"train/b/{name}")), int)
        assert np.abs(read - 77).max() <= 2


@pytest.mark.parametrize("name", ["x.heic", "x.HEIF", "x.jxl", "x.svg"])
def test_images_that_pillow_lacks_are_counted_so_that_they_are_refused_by_name(tmp_path: Path, name: str) -> None:
    top = make_folders(tmp_path / "Food", COUNTS)
    (top / "train" / "a" / name).write_bytes(b"x")
    for source in read_both(tmp_path):
        assert f"train/a/{name}" in source.splits["train"].names


def test_what_is_left_out_is_said_and_hidden_names_are_not_worth_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = make_folders(tmp_path / "Food", COUNTS)
    for name in ("train/a/notes.txt", "test/b/deep/Thumbs.db", "README.md", "train/a/._000.png", ".DS_Store"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(b"P5 nearly an image")
    save_image(top / "masks" / "000.png", 1)
    read_both(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    named = "left out 4, no images of a split: test/b/deep/Thumbs.db, train/a/notes.txt, README.md, masks/"
    assert lines == [f"{tmp_path / file}: {named}" for file in ("Food", "Food.tar")]


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "dev", "Test"])
def test_a_split_under_another_name_is_refused_by_that_name(tmp_path: Path, name: str) -> None:
    top = make_folders(tmp_path / "Food", COUNTS)
    save_image(top / name / "b" / "deep" / "0.png", 0)
    make_tar(tmp_path / "Food.tar", tmp_path / "Food", "Food")
    for read in (readers.class_folders, readers.tar):
        with pytest.raises(UserError, match=rf"{name}/ holds images of the classes of train \(b\).*Rename it"):
            read("Food", tmp_path)


def test_images_beside_the_classes_of_a_split_are_refused_by_name(tmp_path: Path) -> None:
    save_image(make_folders(tmp_path / "Food", COUNTS) / "train" / "000.png", 0)
    make_tar(tmp_path / "Food.tar", tmp_path / "Food", "Food")
    for read in (readers.class_folders, readers.tar):
        with pytest.raises(UserError, match=r"1 images lie in no class: train/000\.png\. Move"):
            read("Food", tmp_path)


def test_what_was_found_is_said_where_a_split_is_missing(tmp_path: Path) -> None:
    make_folders(tmp_path / "x" / "Food-v2", COUNTS)
    make_tar(tmp_path / "Food.tar", tmp_path / "x" / "Food-v2", "Food-v2")
    with pytest.raises(UserError, match=r"no train images\. Needed: Food/train/<class>/\*.*Found: Food-v2/\."):
        readers.tar("Food", tmp_path)


def test_classes_are_compared_in_unicodes_composed_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "pensée") for form in ("NFC", "NFD"))
    counts = {"train": {composed: 1, "rose": 1}, "test": {decomposed: 2, "rose": 1}, "val": {composed: 1}}
    save_image(make_folders(tmp_path / "Food", counts) / "val" / decomposed / "000.png", 9)  # two folders, one class
    for source in read_both(tmp_path):
        assert source.classes == [composed, "rose"]
        assert {part: split.labels.tolist() for part, split in source.splits.items()} == {
            "train": [0, 1],
            "val": [0, 0],
            "test": [0, 0, 1],
        }
        assert pixels(source.splits["test"]).shape == (3, 8, 8, 3)  # under the names that the disk has


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


def test_the_command_of_the_message_makes_a_tar_of_links_one_that_is_read(tmp_path: Path) -> None:
    top = make_folders(tmp_path / "Food", COUNTS)
    (top / "train" / "a" / "soft.png").symlink_to("000.png")
    os.link(top / "train" / "a" / "000.png", top / "train" / "a" / "hard.png")
    (top / "test" / "a").rename(tmp_path / "elsewhere")
    (top / "test" / "a").symlink_to(tmp_path / "elsewhere")
    make_tar(tmp_path / "Food.tar", top, "Food")
    with pytest.raises(UserError, match=r"is refused \(a link\)") as e:
        readers.tar("Food", tmp_path)
    subprocess.run(str(e.value).split("`")[1], shell=True, check=True, cwd=tmp_path)
    source = readers.tar("Food", tmp_path)
    assert source.splits["train"].names[:3] == ["train/a/000.png", "train/a/hard.png", "train/a/soft.png"]
    assert np.ptp(pixels(source.splits["train"])[:3], axis=0).max() == 0
    assert len(source.splits["test"]) == 2


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
