from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.transforms.v2 as transforms
from PIL import Image
from small_data import make_folders, make_tar, save_image

from diffsiam import params, runtime
from diffsiam.data import images, prepare, scenes, sources
from diffsiam.errors import UserError

ARRAYS = [f"{kind}_{part}.npy" for kind in ("attributes", "images", "labels", "targets") for part in ("test", "train")]
COUNTS = {"train": {"a": 10, "b": 5}, "test": {"a": 2, "b": 3}}


def meta_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "meta.json").read_text())


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


# ------------------------------------------------------------------------------------------------------- output
def test_run_writes_arrays_and_a_meta_that_describes_them(tmp_path: Path, cfg: params.Data) -> None:
    make_folders(Path(cfg.root) / "Pets", COUNTS)
    out = tmp_path / "out"
    prepare.run("Pets", cfg, out)
    assert sorted(content(out)) == sorted([*ARRAYS, "meta.json"])
    images = np.load(out / "images_train.npy", mmap_mode="r")
    assert (images.shape, images.dtype) == ((15, 8, 8, 3), np.uint8)
    assert images.flags.c_contiguous
    labels = np.load(out / "labels_test.npy")
    assert (labels.tolist(), labels.dtype) == ([0, 0, 1, 1, 1], np.int64)
    meta = meta_of(out)
    assert meta["dataset"] == "Pets"
    assert meta["classes"] == ["a", "b"]
    assert meta["image_size"] == 8
    assert meta["metric"] == "mean_per_class"
    assert meta["counts"] == {"train": 15, "test": 5}
    assert meta["source"] == {"kind": "class folders", "folder": "Pets"}
    assert meta["broken"] == []
    assert meta["sha256"] == {name: runtime.sha256(out / name) for name in ARRAYS}
    assert (meta["attributes"], meta["targets"]) == ([], [])
    assert np.load(out / "attributes_test.npy").shape == (5, 0)
    targets = np.load(out / "targets_train.npy")
    assert (targets.shape, targets.dtype) == ((15, 0), np.float32)


def test_an_image_of_the_right_size_is_copied_untouched(tmp_path: Path, cfg: params.Data) -> None:
    top = make_folders(Path(cfg.root) / "Pets", COUNTS)
    prepare.run("Pets", cfg, tmp_path / "out")
    images = np.load(tmp_path / "out" / "images_test.npy")
    files = sorted((top / "test").rglob("*.png"))
    assert np.array_equal(images, [np.asarray(Image.open(f)) for f in files])


@pytest.mark.parametrize("size", [(8, 8), (20, 11), (11, 20), (9, 8), (8, 13), (3, 5), (500, 333), (6, 6)])
def test_other_sizes_are_resized_and_cropped_as_torchvision_does(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.open(save_image(tmp_path / "x.png", 0, size))
    theirs = transforms.Compose(
        [transforms.Resize(8, transforms.InterpolationMode.BICUBIC, antialias=True), transforms.CenterCrop(8)]
    )(image)
    assert np.array_equal(np.asarray(images.resize(image, 8)), np.asarray(theirs))


def test_attributes_follow_their_images(tmp_path: Path, cfg: params.Data) -> None:
    prepare.run("sprites", cfg, tmp_path / "out")
    meta = meta_of(tmp_path / "out")
    attributes, labels = (np.load(tmp_path / "out" / f"{kind}_test.npy") for kind in ("attributes", "labels"))
    assert (attributes.dtype, attributes.shape) == (np.uint8, (900, len(meta["attributes"])))
    assert np.array_equal(attributes[:, :6].argmax(axis=1), labels)
    assert meta["attributes"][:6] == [c.title() for c in meta["classes"]]
    targets = dict(zip(meta["targets"], np.load(tmp_path / "out" / "targets_test.npy").T, strict=True))
    by_name = dict(zip(meta["attributes"], attributes.T, strict=True))
    for name, holds in {
        "Large": targets["Radius"] > 0.26,
        "Left": targets["X"] < 0.5,
        "Top": targets["Y"] < 0.5,
    }.items():
        assert np.array_equal(by_name[name], holds)
    assert sources.counts_match("sprites", **{f"n_{k}": v for k, v in meta["counts"].items()})


def test_a_grid_is_all_of_train_and_its_test_images_are_a_drawn_part_of_it(tmp_path: Path, cfg: params.Data) -> None:
    test = []
    for seed in (0, 1):
        prepare.run("tiles", dataclasses.replace(cfg, split_seed=seed), tmp_path / "out")
        meta = meta_of(tmp_path / "out")
        assert meta["counts"] == {"train": 6144, "test": 1000}
        assert meta["grid"] == {
            "names": ["shape", "scale", "orientation", "x", "y"],
            "sizes": [3, 4, 8, 8, 8],
        }
        assert meta["attributes"] == []
        assert len(meta["splits"]["val"]) == round(0.2 * 6144)
        train, drawn = (np.load(tmp_path / "out" / f"images_{part}.npy") for part in ("train", "test"))
        for row in (0, 1, 4000, 6143):
            assert np.array_equal(train[row], scenes.tiles(row, 8))
        assert {image.tobytes() for image in drawn} <= {image.tobytes() for image in train}
        test.append(drawn)
    assert not np.array_equal(*test)


def test_what_is_no_grid_has_none(tmp_path: Path, cfg: params.Data) -> None:
    make_folders(Path(cfg.root) / "Pets", COUNTS)
    prepare.run("Pets", cfg, tmp_path / "out")
    assert "grid" not in meta_of(tmp_path / "out")


def test_the_result_is_the_same_bytes_from_folders_or_a_tar_anywhere_with_any_number_of_threads(
    tmp_path: Path, cfg: params.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders(tmp_path / "one" / "Pets", COUNTS, size=(13, 9))
    make_tar(tmp_path / "two" / "Pets.tar", tmp_path / "one" / "Pets", "Pets")
    one, two = (dataclasses.replace(cfg, root=str(tmp_path / r)) for r in ("one", "two"))
    prepare.run("Pets", one, tmp_path / "a")
    monkeypatch.setattr(prepare, "WORKERS", 5)
    monkeypatch.setattr(prepare, "_TASK", 2)
    prepare.run("Pets", one, tmp_path / "b")
    prepare.run("Pets", two, tmp_path / "c")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    a, c = content(tmp_path / "a"), content(tmp_path / "c")
    assert {n: a[n] for n in ARRAYS} == {n: c[n] for n in ARRAYS}
    assert str(tmp_path).encode() not in a["meta.json"] + c["meta.json"]


# --------------------------------------------------------------------------------------------------- validation
def test_a_random_validation_part_is_a_stratified_share_of_train_that_follows_the_seed(
    tmp_path: Path, cfg: params.Data
) -> None:
    make_folders(Path(cfg.root) / "Pets", {"train": {"a": 10, "b": 5, "c": 1}, "test": {"a": 1, "b": 1, "c": 1}})
    vals = []
    for seed in (0, 0, 1):
        prepare.run("Pets", dataclasses.replace(cfg, split_seed=seed), tmp_path / "out")
        vals.append(meta_of(tmp_path / "out")["splits"]["val"])
    labels = np.load(tmp_path / "out" / "labels_train.npy")
    assert np.bincount(labels[vals[0]], minlength=3).tolist() == [2, 1, 0]
    assert vals[0] == sorted(set(vals[0]))
    assert vals[0] == vals[1] != vals[2]


def test_a_val_folder_becomes_the_end_of_train(tmp_path: Path, cfg: params.Data) -> None:
    top = make_folders(Path(cfg.root) / "Pets", {**COUNTS, "val": {"a": 1, "b": 2}})
    prepare.run("Pets", cfg, tmp_path / "out")
    meta = meta_of(tmp_path / "out")
    assert meta["counts"]["train"] == 18
    assert meta["splits"]["val"] == [15, 16, 17]
    assert np.load(tmp_path / "out" / "labels_train.npy")[15:].tolist() == [0, 1, 1]
    last = np.asarray(Image.open(top / "val" / "b" / "001.png"))
    assert np.array_equal(np.load(tmp_path / "out" / "images_train.npy")[17], last)


def test_a_share_that_leaves_no_validation_image_is_refused(tmp_path: Path, cfg: params.Data) -> None:
    make_folders(Path(cfg.root) / "Pets", {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}})
    with pytest.raises(UserError, match=r"data\.val_fraction = 0\.2 of 2 train images leaves no validation image"):
        prepare.run("Pets", cfg, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# ------------------------------------------------------------------------------------------------- broken images
def break_images(top: Path) -> list[str]:
    """Damage three training images in three ways; their names."""
    whole = save_image(top / "train" / "a" / "001.png", 1).read_bytes()
    (top / "train" / "a" / "001.png").write_bytes(whole[: len(whole) // 2])
    (top / "train" / "b" / "000.png").write_bytes(b"")
    (top / "train" / "b" / "003.png").write_text("<html>not found</html>")
    return ["train/a/001.png", "train/b/000.png", "train/b/003.png"]


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "tar"])
def test_broken_images_stop_with_their_names_and_count_and_leave_nothing(
    tmp_path: Path, cfg: params.Data, packed: bool
) -> None:
    top = make_folders((tmp_path if packed else Path(cfg.root)) / "Pets", COUNTS)
    names = break_images(top)
    if packed:
        make_tar(Path(cfg.root) / "Pets.tar", top, "Pets")
    with pytest.raises(UserError, match=r"Pets: 3 of 15 train images .*max_broken = 0 ") as e:
        prepare.run("Pets", dataclasses.replace(cfg, max_broken=0.0), tmp_path / "out")
    assert all(name in str(e.value) for name in names)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UserError, match="3 of 15"):
        prepare.run("Pets", dataclasses.replace(cfg, max_broken=0.19), tmp_path / "out")


def test_tolerated_broken_images_are_left_out_and_listed(tmp_path: Path, cfg: params.Data) -> None:
    top = make_folders(Path(cfg.root) / "Pets", {**COUNTS, "val": {"a": 1, "b": 2}})
    names = break_images(top)
    (top / "val" / "a" / "000.png").write_bytes(b"")
    prepare.run("Pets", dataclasses.replace(cfg, max_broken=0.25), tmp_path / "out")
    meta = meta_of(tmp_path / "out")
    assert meta["broken"] == [*names, "val/a/000.png"]
    assert meta["counts"] == {"train": 14, "test": 5}
    assert meta["splits"]["val"] == [12, 13]
    kept = [p for s in ("train", "val") for p in sorted((top / s).rglob("*.png"))]
    kept = [p for p in kept if p.relative_to(top).as_posix() not in meta["broken"]]
    images, labels = (np.load(tmp_path / "out" / f"{kind}_train.npy", mmap_mode="r") for kind in ("images", "labels"))
    assert np.array_equal(images, [np.asarray(Image.open(p)) for p in kept])
    assert [meta["classes"][k] for k in labels] == [p.parent.name for p in kept]


def test_a_class_whose_images_are_all_broken_stops_whatever_is_tolerated(tmp_path: Path, cfg: params.Data) -> None:
    top = make_folders(Path(cfg.root) / "Pets", COUNTS)
    for path in (top / "test" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="test has no readable image of 1 classes: b"):
        prepare.run("Pets", dataclasses.replace(cfg, max_broken=1.0), tmp_path / "out")


def test_an_image_as_large_as_a_decompression_bomb_is_broken_not_a_crash(tmp_path: Path, cfg: params.Data) -> None:
    top = make_folders(Path(cfg.root) / "Pets", COUNTS)
    (top / "test" / "a" / "000.png").write_bytes(b"P6\n20000 20000\n255\n")  # a header that promises 1.2 GB
    with pytest.raises(UserError, match=r"1 of 5 test images .*test/a/000\.png"):
        prepare.run("Pets", cfg, tmp_path / "out")


# ------------------------------------------------------------------------------------------- failures and restarts
def test_a_failed_run_leaves_the_earlier_result_as_it_was(tmp_path: Path, cfg: params.Data) -> None:
    top = make_folders(Path(cfg.root) / "Pets", COUNTS)
    prepare.run("Pets", cfg, tmp_path / "out")
    before = content(tmp_path / "out")
    (top / "test" / "a" / "000.png").write_bytes(b"")
    with pytest.raises(UserError):
        prepare.run("Pets", cfg, tmp_path / "out")
    assert content(tmp_path / "out") == before


@contextlib.contextmanager
def files_limited_to(size: int) -> Any:
    """The operating system refuses to let a file grow beyond ``size`` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, cfg: params.Data) -> None:
    make_folders(Path(cfg.root) / "Pets", COUNTS)
    with files_limited_to(2_000), pytest.raises(UserError, match=r"Pets: cannot write to .*out \(File too large\)"):
        prepare.run("Pets", cfg, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_killed_run_leaves_only_temporary_files_and_the_next_ends_right(tmp_path: Path, cfg: params.Data) -> None:
    out, cfg = tmp_path / "out", dataclasses.replace(cfg, image_size=32)
    code = (
        "import pathlib; from diffsiam import params; from diffsiam.data import prepare; "
        f"prepare.run('sprites', params.{cfg!r}, pathlib.Path({str(out)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not list(out.glob(".preparing-*/images_train.npy")) and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL  # it was not done yet
    assert [p.name for p in out.iterdir() if not p.name.startswith(".")] == []
    prepare.run("sprites", cfg, out)
    expected = sorted([*ARRAYS, "meta.json"])
    assert sorted(p.name for p in out.iterdir()) == expected
    assert meta_of(out)["sha256"] == {n: runtime.sha256(out / n) for n in expected if n.endswith(".npy")}


def test_an_output_folder_that_cannot_be_made_is_one_message(tmp_path: Path, cfg: params.Data) -> None:
    make_folders(Path(cfg.root) / "Pets", COUNTS)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"Pets: cannot write to .*out \(File exists\)"):
        prepare.run("Pets", cfg, tmp_path / "out")


def test_a_lone_split_is_an_error_rather_than_a_download(tmp_path: Path, cfg: params.Data) -> None:
    make_folders(Path(cfg.root) / "CIFAR10", {"train": {"a": 1}})
    with pytest.raises(UserError, match=r"CIFAR10: no test images"):
        prepare.run("CIFAR10", cfg, tmp_path / "out")


def test_an_unknown_data_set_is_refused_before_anything_is_written(tmp_path: Path, cfg: params.Data) -> None:
    with pytest.raises(UserError, match="no such data set"):
        prepare.run("ImageNet", cfg, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------- start-up
@pytest.mark.parametrize("name", ["digits", "photos", "Pets"])
def test_no_deep_learning_library_is_loaded_for_folders_and_embedded_sets(
    tmp_path: Path, cfg: params.Data, name: str
) -> None:
    make_folders(Path(cfg.root) / "Pets", COUNTS)
    code = (
        "import pathlib, sys; from diffsiam import params; from diffsiam.data import prepare; "
        f"prepare.run({name!r}, params.{cfg!r}, pathlib.Path({str(tmp_path / 'out')!r})); "
        "print({'torch', 'torchvision', 'skimage'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --------------------------------------------------------------------------------------------------- real images
# The counts that come with the tars: classes, train and test images per class.
REAL = {"CIFAR10": (10, 1500, 500), "CIFAR100": (100, 60, 30), "Caltech": (40, 20, 30), "Cars": (40, 12, 26)}
REAL |= {"DTD": (10, 60, 60), "Flowers": (12, 50, 30), "Food": (10, 100, 60)}


@pytest.mark.parametrize("name", REAL)
def test_real_tars_give_their_counts_and_their_own_pixels(
    tmp_path: Path, cfg: params.Data, real_data: Path, name: str
) -> None:
    size = 32 if name.startswith("CIFAR") else 64  # the size that they are stored in
    prepare.run(name, dataclasses.replace(cfg, root=str(real_data), image_size=size), tmp_path / "out")
    meta = meta_of(tmp_path / "out")
    classes, train, test = REAL[name]
    assert len(meta["classes"]) == classes
    assert meta["counts"] == {"train": classes * train, "test": classes * test}
    assert not sources.counts_match(name, classes * train, classes * test)
    assert np.bincount(np.load(tmp_path / "out" / "labels_train.npy")).tolist() == [train] * classes
    assert len(meta["splits"]["val"]) == round(0.2 * classes * train)
    images = np.load(tmp_path / "out" / "images_test.npy", mmap_mode="r")
    with tarfile.open(real_data / f"{name}.tar") as archive:
        members = sorted(m.name for m in archive if m.isfile() and m.name.split("/")[1] == "test")
        for i in (0, len(members) // 2, len(members) - 1):
            stored = archive.extractfile(members[i])
            assert stored is not None
            assert np.array_equal(images[i], np.asarray(Image.open(stored).convert("RGB"))), members[i]
            assert meta["classes"][i // test] == members[i].split("/")[2]
    assert os.listdir(tmp_path / "out").count("meta.json") == 1
