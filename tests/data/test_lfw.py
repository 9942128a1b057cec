"""LFW from a small copy of its layout, with the odd table of attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.v2 as transforms
from PIL import Image
from torchvision import datasets

from diffsiam import params, runtime
from diffsiam.data import lfw, prepare
from diffsiam.errors import UserError
from tests.data.small_data import save_image

# As published: a comment, a heading with a lone # for its first field, names with spaces, and no row for some images.
TABLE = (
    "# Attribute values for the LFW images\n"
    "#\tperson\timagenum\tMale\tPale Skin\n"
    "Ana de la Cruz\t1\t-1.5\t0.25\n"
    "Ana de la Cruz\t2\t-1.25\t1e-1\n"
    "Bo\t1\t2.0\t-0.5\n"
    "Di Ng\t1\t0.75\t0.5\n"
)
LISTS = {"Train": "2\nAna_de_la_Cruz\t2\nBo\t2\n", "Test": "1\nDi_Ng\t1\n"}
IMAGES = ["Ana_de_la_Cruz_0001", "Ana_de_la_Cruz_0002", "Bo_0001", "Bo_0002", "Di_Ng_0001"]


def make_lfw(root: Path, size: tuple[int, int] = (50, 50)) -> Path:
    folder = root / "lfw-py"
    for i, name in enumerate(IMAGES):
        save_image(folder / "lfw_funneled" / name[:-5] / f"{name}.jpg", i, size)
    (folder / "lfw_attributes.txt").write_text(TABLE)
    for part, text in LISTS.items():
        (folder / f"peopleDev{part}.txt").write_text(text)
    return folder


def test_the_headings_stand_one_column_to_the_right_of_their_values() -> None:
    names, values = lfw.attributes(TABLE)
    assert names == ["Male", "Pale Skin"]
    assert list(values) == [f"lfw_funneled/{name[:-5]}/{name}.jpg" for name in IMAGES if name != "Bo_0002"]
    np.testing.assert_allclose(values["lfw_funneled/Ana_de_la_Cruz/Ana_de_la_Cruz_0002.jpg"], [-1.25, 0.1])
    assert values["lfw_funneled/Bo/Bo_0001.jpg"].dtype == np.float32


def test_it_is_prepared_without_the_images_that_have_no_row(
    tmp_path: Path, cfg: params.Data, capsys: pytest.CaptureFixture[str]
) -> None:
    make_lfw(Path(cfg.root))
    prepare.run("LFW", cfg, tmp_path / "out")
    meta = runtime.read_json(tmp_path / "out" / "meta.json")
    assert (meta["counts"], meta["targets"]) == ({"train": 3, "test": 1}, ["Male", "Pale Skin"])
    assert meta["source"]["without_attributes"] == {"train": 1, "test": 0}
    assert "left out 1 of 4 train images without attributes: lfw_funneled/Bo/Bo_0002.jpg" in capsys.readouterr().err
    train = np.load(tmp_path / "out" / "targets_train.npy")
    assert train.dtype == np.float32
    np.testing.assert_allclose(train, [[-1.5, 0.25], [-1.25, 0.1], [2, -0.5]])
    np.testing.assert_allclose(np.load(tmp_path / "out" / "targets_test.npy"), [[0.75, 0.5]])


def test_the_images_of_a_split_are_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_lfw(tmp_path)
    (folder / "lfw-names.txt").write_text("Ana_de_la_Cruz\t2\nBo\t2\nDi_Ng\t1\n")
    monkeypatch.setattr(datasets.LFWPeople, "_check_integrity", lambda self: True)
    for part in ("train", "test"):
        theirs = datasets.LFWPeople(str(tmp_path), split=part, image_set="funneled").data
        ours = lfw.people((folder / f"peopleDev{part.title()}.txt").read_text())
        assert [str(folder / image) for image in ours] == list(theirs)


@pytest.mark.parametrize("size", [(250, 250), (60, 90), (91, 60)])
@pytest.mark.parametrize("side", [8, 32, 64])
def test_pixels_are_a_bilinear_resize_and_a_central_crop(tmp_path: Path, size: tuple[int, int], side: int) -> None:
    image = Image.open(save_image(tmp_path / "x.png", 0, size)).convert("RGB")
    steps = [transforms.Resize(int(1.1 * side), antialias=True), transforms.CenterCrop(side)]  # bilinear by default
    expected = np.asarray(transforms.Compose(steps)(image)).astype(int)
    made = np.asarray(lfw.crop(image, side)).astype(int)
    if size[0] == size[1]:  # as all of LFW's are
        assert np.array_equal(made, expected)
    assert made.shape == (side, side, 3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("#\tperson\timagenum", "person\timagenum", r"line 2: begins 'person"),
        ("2.0\t-0.5", "2.0", r"line 5: 3 fields, needed are 4"),
        ("2.0\t-0.5", "2.0\tmany", r"line 5: could not convert"),
        ("2.0\t-0.5", "2.0\tnan", r"line 5: NaN or infinity"),
        ("Di Ng", "Somebody Else", r"a row for none of the 1 images of peopleDevTest.txt"),
    ],
)
def test_another_table_is_one_message_that_names_the_line(
    tmp_path: Path, cfg: params.Data, old: str, new: str, said: str
) -> None:
    folder = make_lfw(Path(cfg.root))
    assert old in TABLE
    (folder / "lfw_attributes.txt").write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=said) as error:
        prepare.run("LFW", cfg, tmp_path / "out")
    assert str(error.value).startswith("LFW: the copy in torchvision's layout cannot be read: ")
    assert not (tmp_path / "out").exists()


def test_without_its_files_the_message_says_where_each_belongs(tmp_path: Path, cfg: params.Data) -> None:
    with pytest.raises(UserError) as error:
        prepare.run("LFW", cfg, tmp_path / "out")
    for word in ("lfw-py/lfw-funneled.tgz (about 243 MB, md5:1b42", "peopleDevTest.txt", "lfw_attributes.txt"):
        assert word in str(error.value)
