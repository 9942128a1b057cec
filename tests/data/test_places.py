"""Where a data set lies: each place alone, two at once, and what was meant for one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffsiam import params
from diffsiam.data import places, prepare, sources
from diffsiam.errors import UserError
from tests.data.small_data import make_folders, make_tar, save_image

COUNTS = {"train": {"a": 1}, "test": {"a": 1}}


def make_place(kind: str, root: Path, scratch: Path) -> Path:
    """Pets in one of its places; returns what `places.locate` is to name."""
    if kind == "class folders":
        return make_folders(root / "Pets", COUNTS)
    if kind == "tar":
        return make_tar(root / "Pets.tar", make_folders(scratch / "Pets", COUNTS), "Pets")
    for part in ("images", "annotations"):
        (root / "oxford-iiit-pet" / part).mkdir(parents=True)
    return root / "oxford-iiit-pet" / "images"


KINDS = ["class folders", "tar", "torchvision"]
PETS = sources.get("Pets")


@pytest.mark.parametrize("kind", KINDS)
def test_each_place_is_found_where_it_is_alone(tmp_path: Path, kind: str) -> None:
    part = make_place(kind, tmp_path / "root", tmp_path)
    place = places.locate(PETS, tmp_path / "root")
    assert (place.kind, place.parts[0]) == (kind, part)


def test_where_nothing_is_there_it_is_to_be_fetched(tmp_path: Path) -> None:
    assert places.locate(PETS, tmp_path / "missing").kind == "absent"
    (tmp_path / "oxford-iiit-pet" / "images").mkdir(parents=True)  # without annotations
    (tmp_path / "Food").mkdir()  # of another data set
    assert places.locate(PETS, tmp_path).kind == "absent"


def test_a_part_of_the_published_copy_does_not_stand_against_ones_own(tmp_path: Path) -> None:
    (tmp_path / "oxford-iiit-pet" / "images").mkdir(parents=True)
    make_folders(tmp_path / "Pets", COUNTS)
    assert places.locate(PETS, tmp_path).kind == "class folders"


@pytest.mark.parametrize(("one", "two"), [KINDS[:2], KINDS[1:], KINDS[::2]], ids=lambda kind: kind)
def test_two_places_at_once_are_refused_and_both_named(tmp_path: Path, cfg: params.Data, one: str, two: str) -> None:
    parts = [make_place(kind, Path(cfg.root), tmp_path) for kind in (one, two)]
    with pytest.raises(UserError, match="Pets: its images lie in 2 places") as e:
        prepare.run("Pets", cfg, tmp_path / "out")
    for kind, part in zip((one, two), parts, strict=True):
        assert f"{kind}: {part}" in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "found"),
    [("Pets/Train/a/1.png", "Train/"), ("Pets/Pets/train/a/1.png", "Pets/"), ("Pets/1.png", "1.png")],
    ids=["other case", "a folder too many", "no splits"],
)
@pytest.mark.parametrize("published", [False, True])
def test_an_own_folder_that_is_not_understood_says_what_was_looked_for_and_what_is_there(
    tmp_path: Path, path: str, found: str, published: bool
) -> None:
    save_image(tmp_path / path, 0)
    if published:
        make_place("torchvision", tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"Pets: holds neither train/ nor test/") as e:
        places.locate(PETS, tmp_path)
    assert "Pets/train/<class>/*" in str(e.value)
    assert f"Found: {found}." in str(e.value)


def test_an_empty_own_folder_is_not_understood_either(tmp_path: Path) -> None:
    (tmp_path / "Pets").mkdir()
    with pytest.raises(UserError, match="Found: nothing"):
        places.locate(PETS, tmp_path)


@pytest.mark.parametrize("name", ["pets", "PETS", "Pets.tar.gz", "pets.tar", "Pets.zip", "pets.TGZ"])
def test_another_spelling_or_packing_is_refused_by_name_and_not_replaced_by_a_download(
    tmp_path: Path, name: str
) -> None:
    if "." in name:
        (tmp_path / name).write_bytes(b"")
    else:
        make_folders(tmp_path / name, COUNTS)
    with pytest.raises(UserError, match=f"{name}: not read.*a folder Pets/ .*uncompressed Pets.tar.*section datasets"):
        places.locate(PETS, tmp_path)


def test_the_archive_that_ones_own_folder_was_unpacked_from_may_stay(tmp_path: Path) -> None:
    make_folders(tmp_path / "Pets", COUNTS)
    (tmp_path / "Pets.zip").write_bytes(b"")
    assert places.locate(PETS, tmp_path).kind == "class folders"


def test_another_packing_is_refused_beside_the_published_copy_too(tmp_path: Path) -> None:
    make_place("torchvision", tmp_path, tmp_path)
    (tmp_path / "Pets.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"Pets\.zip: not read"):
        places.locate(PETS, tmp_path)


def test_published_folders_and_tables_with_a_similar_name_are_no_such_thing(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    (tmp_path / "ffhq" / "00000").mkdir(parents=True)
    (tmp_path / "Bedroom_attributes.csv").touch()
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    kinds = {name: places.locate(sources.get(name), tmp_path).kind for name in ("DTD", "FFHQ", "Bedroom", "CelebA")}
    assert kinds == {"DTD": "absent", "FFHQ": "torchvision", "Bedroom": "absent", "CelebA": "absent"}


def test_a_root_that_is_the_data_set_itself_is_refused(tmp_path: Path) -> None:
    make_folders(tmp_path / "mine", COUNTS)
    with pytest.raises(
        UserError, match=r"data\.root holds train/ and test/ itself.*the folder above.*Pets/.*section datasets"
    ):
        places.locate(PETS, tmp_path / "mine")


def test_an_own_folder_named_after_an_embedded_set_is_refused_and_an_unrelated_one_is_not(tmp_path: Path) -> None:
    save_image(tmp_path / "photos" / "holiday.png", 0)
    assert places.locate(sources.get("photos"), tmp_path).kind == "embedded"
    make_folders(tmp_path / "digits", COUNTS)
    with pytest.raises(UserError, match=r"digits is embedded, and .*digits would never be read: .*section datasets"):
        places.locate(sources.get("digits"), tmp_path)


@pytest.mark.parametrize("name", ["Shapes3D", "shapes3d", "Shapes3D.tar", "Shapes3D.zip"])
@pytest.mark.parametrize("published", [False, True])
def test_images_in_folders_are_no_grid_of_factors(tmp_path: Path, name: str, published: bool) -> None:
    if "." in name:
        (tmp_path / name).write_bytes(b"")
    else:
        make_folders(tmp_path / name, COUNTS)
    if published:
        (tmp_path / "3dshapes").mkdir()
        (tmp_path / "3dshapes" / "3dshapes.h5").touch()
    with pytest.raises(UserError, match=rf"{name}: not read.*grid of factors.*place that at .*3dshapes/3dshapes\.h5"):
        places.locate(sources.get("Shapes3D"), tmp_path)


def test_a_grids_published_file_is_its_place(tmp_path: Path) -> None:
    assert places.locate(sources.get("dSprites"), tmp_path).kind == "absent"
    folder = tmp_path / "dsprites"  # of nearly the data set's name
    folder.mkdir()
    (folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5").touch()
    assert places.locate(sources.get("dSprites"), tmp_path).parts == (next(folder.iterdir()),)


# ------------------------------------------------------------------------------------------------------- listing
def test_walk_lists_files_at_any_depth_and_folders_but_nothing_hidden(tmp_path: Path) -> None:
    for name in (
        "b/x.png",
        "b/deep/er/y.png",
        "a.txt",
        "b/.cache/z.png",
        ".hidden",
        "b/._x.png",
        "b/@eaDir/x.png/s.jpg",
        "__MACOSX/b/x.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "b" / "pipe.png")  # reading it would wait for ever
    assert list(places.walk(tmp_path)) == [
        "a.txt",
        "b/",
        "b/deep/",
        "b/deep/er/",
        "b/deep/er/y.png",
        "b/x.png",
        "empty/",
    ]


def test_walk_follows_links_and_refuses_a_circle(tmp_path: Path) -> None:
    save_image(tmp_path / "elsewhere" / "x.png", 0)
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "class").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "top" / "gone.png").symlink_to("nothing")
    assert list(places.walk(tmp_path / "top")) == ["class/", "class/x.png", "gone.png"]
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "top")
    with pytest.raises(UserError, match=r"top/class/loop: a link to a folder that it lies in"):
        list(places.walk(tmp_path / "top"))


UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("Pets", "Pets/train/a"),
        ("Pets", "Pets"),
        ("Pets", "."),
        ("FFHQ", "ffhq/00000"),
        ("Caltech", "caltech101/101_ObjectCategories/a"),
        ("Caltech", "caltech101"),
        ("Bedroom", "bedroom_train_lmdb"),
    ],
)
def test_a_folder_that_may_not_be_listed_is_one_message_that_names_it(
    tmp_path: Path, cfg: params.Data, dataset: str, folder: str
) -> None:
    root = Path(cfg.root)
    layouts = {
        "Pets": ["Pets/train/a/0.png", "Pets/test/a/0.png"],
        "FFHQ": [f"ffhq/0000{i}/{i}.png" for i in range(3)],
        "Caltech": ["caltech101/101_ObjectCategories/a/0.jpg"],
        "Bedroom": ["bedroom_train_lmdb/data.mdb.png", "bedroom_val_lmdb/data.mdb.png"],
    }
    for i, name in enumerate(layouts[dataset]):
        save_image(root / name, i)
    code = (
        "import pathlib; from diffsiam import params, errors; from diffsiam.data import prepare\n"
        f"try: prepare.run({dataset!r}, params.{cfg!r}, pathlib.Path({str(tmp_path / 'out')!r}))\n"
        "except errors.UserError as e: print(e)"
    )
    (root / folder).chmod(0)
    try:
        done = subprocess.run([*UNPRIVILEGED, sys.executable, "-c", code], capture_output=True, text=True)
    finally:
        (root / folder).chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert str((root / folder).resolve()) in done.stdout
    assert not (tmp_path / "out").exists()


def test_places_are_found_without_loading_any_library() -> None:
    heavy = {"torch", "torchvision", "numpy", "PIL"}
    code = f"import sys, diffsiam.data.places; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
