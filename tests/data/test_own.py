"""Images of one's own by a name: each layout from a folder, a tar and a CSV, and every way in which it is none."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffsiam import params, runtime
from diffsiam.data import fingerprint, own, prepare, readers, sources
from diffsiam.data.sources import Own
from diffsiam.errors import UserError
from tests.data.small_data import make_folders, make_tar, save_image

SPLITS = {"train": {"b": 3, "a": 2}, "val": {"a": 1}, "test": {"a": 1, "b": 1}}
Sorted = dict[str, dict[str, list[str]]]


def read(path: Path, **keys: Any) -> readers.Source:
    return own.read("birds", Own(str(path), **keys), split_seed=0)


def by_class(source: readers.Source) -> Sorted:
    """Split -> class -> names."""
    found: Sorted = {}
    for part, split in source.splits.items():
        for name, label in zip(split.names, split.labels, strict=True):
            found.setdefault(part, {}).setdefault(source.classes[label], []).append(name)
    return found


def flat(folder: Path, count: int, prefix: str = "") -> Path:
    for i in range(count):
        save_image(folder / f"{prefix}{i}.png", i)
    return folder


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


# ------------------------------------------------------------------------------------------------------- layouts
def test_splits_of_class_folders_are_read_as_they_lie_from_a_folder_a_tar_and_a_csv(tmp_path: Path) -> None:
    top = make_folders(tmp_path / "birds", SPLITS)
    names = [p.relative_to(top) for p in sorted(top.rglob("*.png"))]
    rows = [f"{n.as_posix()},{n.parts[1]},{n.parts[0]}" for n in names]
    expected: Sorted = {}
    for n in names:
        expected.setdefault(n.parts[0], {}).setdefault(n.parts[1], []).append(n.as_posix())
    for path in (
        top,
        make_tar(tmp_path / "some.tar", top, "."),
        make_tar(tmp_path / "wrapped.tar", top, "birds-v2"),
        table(top / "list.csv", "image,label,split", *reversed(rows)),
    ):
        source = read(path)
        assert by_class(source) == expected
        assert list(source.classes) == ["a", "b"]
        pixels = [np.asarray(source.splits["train"].load(i)) for i in range(5)]
        assert np.array_equal(pixels, [np.asarray(Image.open(top / n)) for n in source.splits["train"].names])
        assert "test" not in source.origin


def test_where_there_is_no_test_split_a_fifth_of_every_class_is_drawn_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = make_folders(tmp_path / "birds", {".": {"a": 10, "b": 2, "c": 15}})
    source = read(top)
    found = by_class(source)
    assert {part: {c: len(names) for c, names in of.items()} for part, of in found.items()} == {
        "train": {"a": 8, "b": 1, "c": 12},
        "test": {"a": 2, "b": 1, "c": 3},
    }
    everything = [name for of in found.values() for names in of.values() for name in names]
    assert sorted(everything) == sorted(p.relative_to(top).as_posix() for p in top.rglob("*.png"))
    assert source.origin["test"] == "with 20% of every class drawn for test by data.split_seed 0"
    assert f"birds: has no test split, so it is read {source.origin['test']}." in capsys.readouterr().err
    assert by_class(own.read("birds", Own(str(top)), 1)) != found
    save_image(top / "d" / "0.png", 0)
    save_image(top / "d" / "1.png", 1)
    again = by_class(own.read("renamed", Own(str(top)), 0))
    assert {part: {c: of[c] for c in "abc"} for part, of in again.items()} == found  # a new class moves no other image


@pytest.mark.parametrize("packing", ["folder", "tar", "csv"])
def test_images_without_labels_are_one_class_and_a_fifth_tests(tmp_path: Path, packing: str) -> None:
    top = flat(tmp_path / "birds", 10)
    names = sorted(p.name for p in top.glob("*.png"))
    path = {"folder": top, "tar": tmp_path / "x.tar", "csv": top / "x.csv"}[packing]
    if packing == "tar":
        make_tar(path, top, "birds")
    if packing == "csv":
        table(path, "image", *names)
    found = by_class(read(path))
    assert {part: [*of] for part, of in found.items()} == {"train": ["image"], "test": ["image"]}
    assert [len(found[part]["image"]) for part in ("train", "test")] == [8, 2]
    assert sorted(found["train"]["image"] + found["test"]["image"]) == names


def test_images_without_labels_may_have_splits_and_where_said_lie_at_any_depth(tmp_path: Path) -> None:
    top = flat(flat(tmp_path / "birds", 2, "train/").parent / "birds", 1, "test/")
    assert by_class(read(top)) == {
        "train": {"image": ["train/0.png", "train/1.png"]},
        "test": {"image": ["test/0.png"]},
    }
    flat(top, 2, "train/2019/")
    with pytest.raises(UserError, match=r"3 images lie in no class .*, 2 in folders .*layout to flat"):
        read(top)
    assert len(read(top, layout="flat").splits["train"]) == 4


def test_a_train_folder_with_val_alone_keeps_val_and_draws_test_from_train(tmp_path: Path) -> None:
    found = by_class(read(make_folders(tmp_path / "birds", {"train": {"a": 5, "b": 5}, "val": {"a": 1}})))
    assert found["val"] == {"a": ["val/a/000.png"]}
    assert [len(found[part]["a"]) for part in ("train", "test")] == [4, 1]
    assert all(name.startswith("train/") for name in found["test"]["a"])


def test_labels_and_names_of_a_csv_may_hold_what_csv_quotes_and_images_lie_anywhere(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a, b.png", 0)
    save_image(tmp_path / "c.png", 1)
    path = tmp_path / "lists" / "birds.CSV"
    path.parent.mkdir()
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        rows = [["date", "label", "image", "split"], ["1", 'tit, "blue"', "../images/a, b.png", "train"]]
        csv.writer(file).writerows([*rows, ["2", 'tit, "blue"', str(tmp_path / "c.png"), "test"]])
    source = read(path)
    assert list(source.classes) == ['tit, "blue"']
    assert source.splits["test"].load(0).size == (8, 8)


def test_attributes_come_from_a_csv_and_follow_their_images(tmp_path: Path) -> None:
    top = flat(tmp_path / "birds", 10)
    path = table(tmp_path / "a.csv", "image,Even,Big", *(f"{i}.png,{1 - i % 2},{i - 4}" for i in range(10)))
    source = read(top, attributes=str(path))
    assert source.attributes == ["Even", "Big"]
    for split in source.splits.values():
        numbers = [int(name.partition(".")[0]) for name in split.names]
        assert split.attributes is not None
        assert split.attributes.tolist() == [[1 - i % 2, int(i > 4)] for i in numbers]


def test_folders_above_the_classes_are_no_classes_unless_that_is_said(tmp_path: Path) -> None:
    def top(name: str, *folders: str) -> Path:
        return make_folders(tmp_path / name, {folder: {"crow": 2, "owl": 2} for folder in folders})

    for name, folders in {"capital": ("Train", "Test"), "other": ("val", "training"), "numbers": ("1", "2")}.items():
        said = f"{', '.join(sorted(folders))}, or crow, owl in each"
        with pytest.raises(UserError, match=rf"{name}: which are the classes: {said}\? Splits are called train, val"):
            read(top(name, *folders))
        assert read(tmp_path / name, layout="classes").classes == sorted(folders)
    archive = top("archive", "images")
    (archive / "README").touch()  # else the one folder would be passed through
    with pytest.raises(UserError, match=r"which are the classes: images, or crow, owl in it\?.*name that one as path"):
        read(archive)
    assert read(archive / "images").classes == ["crow", "owl"]
    deep = make_folders(tmp_path / "deep", {"crow": {"day": 2, "2019": 2}, "owl": {"day": 2}})
    assert read(deep).classes == ["crow", "owl"]


@pytest.mark.skipif(os.fsencode("\udce9") != b"\xe9", reason="names here are not any bytes")
def test_a_class_of_a_name_that_is_no_utf_8_is_read_and_shown_by_its_bytes(tmp_path: Path) -> None:
    top = tmp_path / "birds"
    make_folders(top, {".": {"caf\udce9": 5, "owl": 5}})
    attributes = tmp_path / "a.csv"
    names = sorted(image.relative_to(top).as_posix() for image in top.rglob("*.png"))
    attributes.write_bytes(os.fsencode("\n".join(["image,Big", *(f"{name},1" for name in names)])))
    source = read(top, attributes=str(attributes))
    assert source.classes == ["caf\\xe9", "owl"]
    "".join(source.classes).encode()  # tables and figures are UTF-8
    assert source.splits["test"].load(0).size == (8, 8)


# ------------------------------------------------------------------------------------------------------ mistakes
def bird_folders(counts: dict[str, dict[str, int]]) -> Any:
    return lambda top: make_folders(top / "birds", counts)


def listed(header: str, *rows: str) -> Any:
    def make(top: Path) -> Path:
        flat(top, 3)
        return table(top / "birds.csv", header, *rows)

    return make


def empty(top: Path) -> Path:
    (top / "birds").mkdir()
    (top / "birds" / "notes.txt").write_text("x")
    return top / "birds"


def beside(top: Path) -> Path:
    make_folders(top / "birds", SPLITS)
    save_image(top / "birds" / "valid" / "a" / "0.png", 0)
    return top / "birds"


def zipped(top: Path) -> Path:
    (top / "birds.zip").write_bytes(b"PK")
    return top / "birds.zip"


MISTAKES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("nowhere", lambda top: top / "birds", {}, r"datasets\.birds\.path: .*birds is not there"),
    ("no image", empty, {}, r"birds holds no image\. Found: notes\.txt"),
    ("no tar", zipped, {}, r"birds\.zip: not a whole, uncompressed tar"),
    ("another split", beside, {}, r"1 images lie beside train/, val/, test/: valid/a/0\.png"),
    ("no train", bird_folders({"test": {"a": 1}}), {}, r"no train images"),
    ("test's classes", bird_folders({"train": {"a": 1, "b": 1}, "test": {"a": 1}}), {}, r"test has not: 1 \(b\)"),
    ("train's classes", bird_folders({"train": {"a": 1}, "test": {"a": 1, "b": 1}}), {}, r"train has not: 1 \(b\)"),
    ("one image", bird_folders({".": {"a": 5, "b": 1}}), {}, r"images of class b: 1; .*needed are 2"),
    ("empty class", bird_folders({".": {"a": 5, "b": 0}}), {}, r"images of class b: 0;"),
    ("no class", lambda top: flat(top / "birds", 3), {"layout": "classes"}, r"layout is classes, but no image"),
    ("val twice", bird_folders(SPLITS), {"validation": 0.2}, r"datasets\.birds\.validation: met 0\.2.*val split"),
    ("no header", listed("0.png,a"), {}, r"met the header 0\.png,a\. Needed is image,label,split"),
    ("semicolons", listed("image;label", "0.png;a"), {}, r"met the header image;label\."),
    ("a column twice", listed("image,label,label", "0.png,a,b"), {}, r"each once"),
    ("short row", listed("image,label", "0.png,a", "1.png"), {}, r"birds\.csv, line 3: met 1 cells, needed are 2"),
    ("no label", listed("image,label", "0.png,a", "1.png,"), {}, r"line 3: met .*a label that is not empty"),
    ("odd split", listed("image,split", "0.png,train", "1.png,dev"), {}, r"line 3: .*one of train, val, test"),
    ("twice", listed("image,label", "0.png,a", "1.png,a", "./0.png,b"), {}, r"twice: 0\.png \(lines 2 and 4\)"),
    ("all missing", listed("image,label", "x/0.png,a", "x/1.png,a"), {}, r"none of its 2 images is there, .*relative"),
    ("no rows", listed("image,label"), {}, r"no train images\. Found: no rows"),
    ("only test", listed("image,split", "0.png,test"), {}, r"no train images\. Found: test"),
]


@pytest.mark.parametrize(("make", "keys", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_message_and_leaves_nothing(
    tmp_path: Path, cfg: params.Data, make: Any, keys: dict[str, Any], said: str
) -> None:
    entries = {"birds": {"path": str(make(tmp_path)), **keys}}
    with pytest.raises(UserError, match=said) as error:
        prepare.run("birds", cfg, tmp_path / "out", entries=entries)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_images_that_a_csv_names_and_that_are_missing_are_counted_and_named(tmp_path: Path, cfg: params.Data) -> None:
    path = listed("image,label,split", "0.png,a,train", "gone.png,a,train", "1.png,a,test")(tmp_path)
    with pytest.raises(UserError, match=r"1 of 2 train images are missing or cannot be read: 1 missing: gone\.png"):
        prepare.run("birds", cfg, tmp_path / "out", entries={"birds": {"path": str(path)}})


@pytest.mark.parametrize("row", ["0.png,1\n0.png,1", "0.png,\n1.png,1"], ids=["twice", "an empty cell"])
def test_a_table_of_attributes_has_one_number_for_each_image(tmp_path: Path, row: str) -> None:
    path = table(tmp_path / "a.csv", "image,Big", row, "2.png,1")
    with pytest.raises(UserError, match=r"a\.csv: 0\.png stands there twice, or lacks a number"):
        read(flat(tmp_path / "birds", 3), attributes=str(path))


def test_a_validation_share_that_leaves_no_image_is_named_by_the_entrys_own_key(
    tmp_path: Path, cfg: params.Data
) -> None:
    entries = {"birds": {"path": str(flat(tmp_path / "birds", 10)), "validation": 0.01}}
    with pytest.raises(UserError, match=r"datasets\.birds\.validation = 0\.01 of 8 train images leaves no validation"):
        prepare.run("birds", cfg, tmp_path / "out", entries=entries)


# -------------------------------------------------------------------------------------------- prepared, and names
def test_what_is_prepared_has_the_entrys_metric_and_validation_and_tells_of_no_place(
    tmp_path: Path, cfg: params.Data
) -> None:
    top = make_folders(tmp_path / "secret" / "birds", {".": {"a": 10, "b": 10}})
    entry = {"path": str(top), "metric": "mean_per_class", "validation": 0.5}
    prepare.run("birds", cfg, tmp_path / "one", entries={"birds": entry})
    meta = runtime.read_json(tmp_path / "one" / "meta.json")
    assert (meta["dataset"], meta["metric"], meta["counts"]) == ("birds", "mean_per_class", {"train": 16, "test": 4})
    assert len(meta["splits"]["val"]) == 8
    assert meta["source"]["kind"] == "own folder"
    assert "secret" not in json.dumps(meta)
    moved = shutil.move(top, tmp_path / "elsewhere")
    prepare.run("birds", cfg, tmp_path / "two", entries={"birds": entry | {"path": str(moved)}})
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    other = dataclasses.replace(cfg, split_seed=1)
    prepare.run("birds", other, tmp_path / "three", entries={"birds": entry | {"path": str(moved)}})
    assert runtime.sha256(tmp_path / "one" / "images_test.npy") != runtime.sha256(tmp_path / "three/images_test.npy")


def test_a_path_in_the_place_of_a_name_is_entered_under_its_own_letters_and_digits(tmp_path: Path) -> None:
    folder, tar = tmp_path / "My birds 2.0", tmp_path / "wings.tar"
    folder.mkdir()
    tar.touch()
    entries = {"fish": {"path": "x"}}
    names, found = own.entered(["digits", str(folder), "fish", str(tar)], entries)
    assert names == ["digits", "Mybirds20", "fish", "wings"]
    assert found == entries | {"Mybirds20": {"path": str(folder)}, "wings": {"path": str(tar)}}
    assert entries == {"fish": {"path": "x"}}
    assert own.entered([str(tar)], found) == (["wings"], found)  # the entry is about this very place
    for name in ("DTD", "fish"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=rf"{name} is no new name"):
            own.entered([str(tmp_path / name)], entries)
    with pytest.raises(UserError, match=r"--data nothing: neither a data set nor a folder.*CIFAR10.*fish"):
        own.entered(["nothing"], entries)


@pytest.mark.parametrize(
    ("make", "keys", "has"),
    [
        (bird_folders(SPLITS), {}, True),
        (bird_folders({".": {"a": 1}}), {}, True),
        (bird_folders({".": {"a": 1}}), {"layout": "flat"}, False),
        (lambda top: flat(top / "birds", 1), {}, False),
        (lambda top: flat(top / "birds", 1, "train/").parent / "birds", {}, False),
        (lambda top: top / "nowhere", {}, True),
        (listed("image,label", "0.png,a"), {}, True),
        (listed("image", "0.png"), {}, False),
    ],
)
def test_data_sets_of_the_tables_have_classes_as_far_as_can_be_told(
    tmp_path: Path, make: Any, keys: dict[str, Any], has: bool
) -> None:
    row = sources.get("birds", {"birds": {"path": str(make(tmp_path)), **keys}})
    if has:
        own.refuse_unlabelled("transfer:", [row])
    else:
        with pytest.raises(UserError, match=r"transfer: birds: no classes to tell apart\."):
            own.refuse_unlabelled("transfer:", [row])


# --------------------------------------------------------------------------------------------------- fingerprints
def seen(path: Path, **keys: Any) -> str | None:
    row = sources.get("birds", {"birds": {"path": str(path), **keys}})
    return fingerprint.of(row, path.parent)


@pytest.mark.parametrize("kind", ["folder", "tar", "csv"])
def test_a_fingerprint_is_of_names_and_sizes_wherever_they_lie(tmp_path: Path, kind: str) -> None:
    top = flat(tmp_path / "one" / "birds", 3)
    names = {"folder": ".", "tar": "x.tar", "csv": "x.csv"}
    if kind == "tar":
        make_tar(top / "x.tar", tmp_path / "one", "x")
    if kind == "csv":
        table(top / "x.csv", "image,label", "0.png,a", "gone.png,a")
    before = seen(top / names[kind])
    assert before is not None
    other = Path(shutil.copytree(top, tmp_path / "two" / "renamed"))
    assert seen(other / names[kind]) == before
    assert seen(tmp_path / "nowhere" / names[kind]) is None
    changed = {"folder": "2.png", "tar": "x.tar", "csv": "0.png"}[kind]
    with open(other / changed, "ab") as file:
        file.write(b"more")
    assert seen(other / names[kind]) != before


def test_a_fingerprint_is_of_the_table_of_attributes_too(tmp_path: Path) -> None:
    top, attributes = flat(tmp_path / "birds", 1), tmp_path / "a.csv"
    without = seen(top)
    table(attributes, "image,Big", "0.png,1")
    before = seen(top, attributes=str(attributes))
    assert before not in (without, None)
    table(attributes, "image,Big", "0.png,-1")
    assert seen(top, attributes=str(attributes)) != before
