"""CelebA, FFHQ and Bedroom from small copies of their published layouts, and streamed images."""

from __future__ import annotations

import dataclasses
import io
import unicodedata
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from diffsiam import params, runtime
from diffsiam.data import images, prepare, readers, unlabelled
from diffsiam.errors import UserError
from tests.data.small_data import make_tar, save_image

PARTS = [0, 0, 0, 0, 1, 2, 2]  # of seven CelebA images: train, val, test


def make_celeba(folder: Path, size: tuple[int, int] = (178, 218)) -> Path:
    """Seven JPEG faces with three attributes in torchvision's layout."""
    lines = ["7", "Young Wearing_Hat Male"]
    for i in range(7):
        save_image(folder / "img_align_celeba" / f"{i:06d}.jpg", i, size)
        lines.append(f"{i:06d}.jpg " + " ".join("1" if i & bit else "-1" for bit in (1, 2, 4)))
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (folder / "list_eval_partition.txt").write_text("".join(f"{i:06d}.jpg {p}\n" for i, p in enumerate(PARTS)))
    return folder


def make_lmdb(place: Path, count: int) -> dict[str, bytes]:
    """An LMDB of encoded images as LSUN lays it out; returns them by key."""
    encoded = {}
    for i in range(count):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (8, 12, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "png")
        encoded[f"{i:040x}"] = buffer.getvalue()
    with lmdb.open(str(place)) as environment, environment.begin(write=True) as transaction:
        for key, value in encoded.items():
            transaction.put(key.encode(), value)
    return encoded


def make_bedroom(root: Path) -> dict[str, bytes]:
    make_lmdb(root / "bedroom_val_lmdb", 3)
    return make_lmdb(root / "bedroom_train_lmdb", 10)


def run(dataset: str, cfg: params.Data, out: Path, attributes: Path | None = None) -> dict:
    prepare.run(dataset, cfg, out, attributes)
    return runtime.read_json(out / "meta.json")


# ------------------------------------------------------------------------------------------------------ CelebA
def test_celeba_has_its_own_splits_and_the_signs_of_its_attributes(tmp_path: Path, cfg: params.Data) -> None:
    make_celeba(Path(cfg.root) / "celeba")
    meta = run("CelebA", cfg, tmp_path / "out")
    assert (meta["counts"], meta["splits"]["val"]) == ({"train": 5, "test": 2}, [4])
    assert meta["attributes"] == ["Young", "Wearing Hat", "Male"]
    assert np.load(tmp_path / "out/attributes_train.npy").tolist() == [[i & 1, i >> 1 & 1, i >> 2] for i in range(5)]
    assert np.load(tmp_path / "out/attributes_test.npy").tolist() == [[1, 0, 1], [0, 1, 1]]


def test_celeba_in_a_tar_gives_the_same_arrays_as_unpacked(tmp_path: Path, cfg: params.Data) -> None:
    folder = make_celeba(tmp_path / "celeba")
    make_tar(Path(cfg.root) / "CelebA.tar", folder, "celeba")
    packed = run("CelebA", cfg, tmp_path / "packed")
    (Path(cfg.root) / "CelebA.tar").unlink()
    make_celeba(Path(cfg.root) / "celeba")
    assert run("CelebA", cfg, tmp_path / "unpacked")["sha256"] == packed["sha256"]


@pytest.mark.parametrize("packed", [True, False], ids=["tar", "folder"])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("list_attr_celeba.txt", ""),
        ("list_attr_celeba.txt", "7\nYoung Male\n000000.jpg 1 x\n"),
        ("list_eval_partition.txt", "000000.jpg 7\n"),
        ("list_eval_partition.txt", "000000.jpg\n"),
        ("list_eval_partition.txt", None),
    ],
)
def test_damaged_lists_of_celeba_are_one_message(
    tmp_path: Path, cfg: params.Data, packed: bool, file: str, text: str | None
) -> None:
    folder = make_celeba((tmp_path if packed else Path(cfg.root)) / "celeba")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    if packed:
        make_tar(Path(cfg.root) / "CelebA.tar", folder, "celeba")
    with pytest.raises(UserError, match=r"celeba") as e:
        run("CelebA", cfg, tmp_path / "out")
    assert "list_eval_partition.txt" in str(e.value)


def test_the_face_crop_is_pdaes_square_and_half_of_it_on_a_half_size_copy() -> None:
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[121 - 64 : 121 + 64, 89 - 64 : 89 + 64] = 255  # PDAE: 64 pixels around (89, 121)
    whole = Image.fromarray(pixels)
    assert np.asarray(unlabelled.crop_face(whole)).shape == (128, 128, 3)
    assert np.asarray(unlabelled.crop_face(whole)).min() == 255
    half = unlabelled.crop_face(whole.resize((89, 109), Image.Resampling.BOX))
    assert half.size == (64, 64)
    assert np.asarray(half)[1:, 1:].min() > 250


def test_a_missing_face_is_counted_among_the_broken(tmp_path: Path, cfg: params.Data) -> None:
    folder = make_celeba(Path(cfg.root) / "celeba")
    (folder / "img_align_celeba" / "000002.jpg").unlink()
    meta = run("CelebA", dataclasses.replace(cfg, max_broken=0.5), tmp_path / "out")
    assert meta["broken"] == ["000002.jpg"]
    assert np.load(tmp_path / "out/attributes_train.npy").tolist() == [
        [i & 1, i >> 1 & 1, i >> 2] for i in (0, 1, 3, 4)
    ]


def test_real_celeba_shows_faces_with_forty_attributes(tmp_path: Path, cfg: params.Data, real_data: Path) -> None:
    source = unlabelled.celeba_tar(real_data)
    assert {part: len(split) for part, split in source.splits.items()} == {"train": 3200, "val": 400, "test": 400}
    assert len(source.attributes) == 40
    assert "Wearing Hat" in source.attributes
    mean = np.mean([np.asarray(source.splits["test"].load(i), float) for i in range(100)], axis=0)
    centre, corners = mean[24:40, 24:40].mean(), mean[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert centre > corners + 20  # skin is brighter than what surrounds a face


# -------------------------------------------------------------------------------------------------------- FFHQ
def test_ffhq_splits_its_images_by_number_at_any_depth(tmp_path: Path, cfg: params.Data) -> None:
    for i in range(14):
        save_image(Path(cfg.root) / f"ffhq/{i // 10:05d}/{i:05d}.png", i)
    meta = run("FFHQ", cfg, tmp_path / "out")
    assert meta["counts"] == {"train": 12, "test": 2}
    last = np.asarray(Image.open(Path(cfg.root) / "ffhq/00001/00013.png"))
    assert np.array_equal(np.load(tmp_path / "out/images_test.npy")[1], last)
    assert np.load(tmp_path / "out/attributes_train.npy").shape == (12, 0)


def numbered(root: Path, names: list[str]) -> dict[str, list[int]]:
    """Grey images of the value that their number says; which split each number is read into."""
    for name in names:
        (root / "ffhq" / name).parent.mkdir(parents=True, exist_ok=True)
        value = int("".join(filter(str.isdigit, Path(name).stem)))
        Image.new("L", (8, 8), value).save(root / "ffhq" / name)
    source = unlabelled.ffhq(root)
    return {
        part: [split.load(i).getpixel((0, 0))[0] for i in range(len(split))] for part, split in source.splits.items()
    }


def test_ffhq_counts_by_number_with_or_without_padding(tmp_path: Path) -> None:
    assert numbered(tmp_path, [f"{i}.png" for i in range(14)]) == {"train": [*range(12)], "test": [12, 13]}
    assert numbered(tmp_path, [f"img{100 + i}.png" for i in range(7)])["test"] == [104, 105, 106]


@pytest.mark.parametrize("one", ["images1024x1024/", "", "00000/"])
def test_of_two_copies_of_ffhq_one_is_read_and_the_other_named(
    tmp_path: Path, one: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{folder}{i:05d}.png" for folder in (one, "thumbnails128x128/00000/") for i in range(14)]
    assert numbered(tmp_path, names) == {"train": [*range(12)], "test": [12, 13]}
    said = capsys.readouterr().err
    assert f"read is {one if one.startswith('images') else 'others'}".rstrip("/") in said
    assert "left out, other copies: thumbnails128x128 (14 images)" in said


def test_a_face_of_an_unknown_or_a_repeated_number_is_refused_by_name(tmp_path: Path) -> None:
    numbered(tmp_path, [f"{i:05d}.png" for i in range(14)])
    save_image(tmp_path / "ffhq" / "cover.png", 0)
    with pytest.raises(UserError, match=r"cover\.png has no number"):
        unlabelled.ffhq(tmp_path)
    (tmp_path / "ffhq" / "cover.png").rename(tmp_path / "ffhq" / "3.webp")
    with pytest.raises(UserError, match=r"00003\.png and 3\.webp have the same number"):
        unlabelled.ffhq(tmp_path)


def test_hidden_files_do_not_count_as_faces(tmp_path: Path) -> None:
    save_image(tmp_path / "ffhq" / ".trash" / "00099.png", 0)
    (tmp_path / "ffhq").joinpath("._00000.png").write_bytes(b"\0\5\26\7")
    assert numbered(tmp_path, [f"{i:05d}.png" for i in range(14)]) == {"train": [*range(12)], "test": [12, 13]}


def test_without_ffhq_the_message_says_where_it_belongs(tmp_path: Path, cfg: params.Data) -> None:
    with pytest.raises(UserError, match=f"{cfg.root}/ffhq"):
        run("FFHQ", cfg, tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- Bedroom
def test_bedroom_trains_on_names_and_tests_on_arrays(tmp_path: Path, cfg: params.Data) -> None:
    encoded = make_bedroom(Path(cfg.root))
    meta = run("Bedroom", cfg, tmp_path / "out")
    names = np.load(tmp_path / "out/images_train.npy")
    assert [name.decode() for name in names] == list(encoded)
    assert np.load(tmp_path / "out/images_test.npy").shape == (3, 8, 8, 3)
    assert meta["counts"] == {"train": 10, "test": 3}


def test_streamed_images_are_those_of_an_array(tmp_path: Path, cfg: params.Data) -> None:
    """An independent reading: the same images as class folders of a data set that is copied."""
    encoded = make_bedroom(Path(cfg.root))
    run("Bedroom", cfg, tmp_path / "out")
    stream = images.open_images(tmp_path / "out/images_train.npy", Path(cfg.root))
    expected = [np.asarray(images.resize(readers.decode(data), 8)) for data in encoded.values()]
    assert (len(stream), stream.shape) == (10, (10, 8, 8, 3))
    assert np.array_equal(stream[torch.tensor([7, 0, 7])], [expected[7], expected[0], expected[7]])
    assert np.array_equal(stream[2:4], expected[2:4])
    assert stream[2:4].dtype == torch.uint8


def test_bedroom_as_class_folders_is_streamed_too(tmp_path: Path, cfg: params.Data) -> None:
    for part in ("train", "test"):
        for i in range(5):
            save_image(Path(cfg.root) / f"Bedroom/{part}/bedroom/{i}.png", i)
    run("Bedroom", cfg, tmp_path / "out")
    stream = images.open_images(tmp_path / "out/images_train.npy", Path(cfg.root))
    with Image.open(Path(cfg.root) / "Bedroom/train/bedroom/3.png") as image:
        assert np.array_equal(stream[torch.tensor([3])][0], np.asarray(image))


@pytest.mark.parametrize(
    "name", ["schlafzimmer_grün", "寝室", "caf\udce9"], ids=["latin", "kanji", "no unicode at all"]
)
def test_streamed_images_may_have_any_name(tmp_path: Path, cfg: params.Data, name: str) -> None:
    for part in ("train", "test"):
        for i in range(5):
            save_image(Path(cfg.root) / f"Bedroom/{part}/bedroom/{i}{name}.png", i)
    run("Bedroom", cfg, tmp_path / "out")
    stream = images.open_images(tmp_path / "out/images_train.npy", Path(cfg.root))
    with Image.open(Path(cfg.root) / f"Bedroom/train/bedroom/3{name}.png") as image:
        assert np.array_equal(stream[torch.tensor([3])][0], np.asarray(image))


def test_keys_of_an_lmdb_may_have_any_bytes(tmp_path: Path, cfg: params.Data) -> None:
    make_lmdb(Path(cfg.root) / "bedroom_val_lmdb", 3)
    place = Path(cfg.root) / "bedroom_train_lmdb"
    with lmdb.open(str(place)) as environment, environment.begin(write=True) as transaction:
        for i, key in enumerate((b"gr\xfcn", "grün".encode(), b"plain")):
            transaction.put(key, save_image(tmp_path / "x.png", i).read_bytes())
    run("Bedroom", cfg, tmp_path / "out")
    stream = images.open_images(tmp_path / "out/images_train.npy", Path(cfg.root))
    assert sorted(stream.names.tolist()) == sorted([b"gr\xfcn", "grün".encode(), b"plain"])
    assert stream[0:3].shape == (3, 8, 8, 3)


def test_an_array_is_opened_as_a_tensor(tmp_path: Path, cfg: params.Data) -> None:
    run("sprites", cfg, tmp_path / "out")
    opened = images.open_images(tmp_path / "out/images_train.npy", Path("nowhere"))
    assert np.array_equal(opened[torch.tensor([5])][0], np.load(tmp_path / "out/images_train.npy")[5])


def test_a_stream_whose_source_moved_or_broke_says_so(tmp_path: Path, cfg: params.Data) -> None:
    for part in ("train", "test"):
        for i in range(5):
            save_image(Path(cfg.root) / f"Bedroom/{part}/bedroom/{i}.png", i)
    run("Bedroom", cfg, tmp_path / "out")
    with pytest.raises(UserError, match=r"data\.root"):
        images.open_images(tmp_path / "out/images_train.npy", tmp_path / "elsewhere")
    stream = images.open_images(tmp_path / "out/images_train.npy", Path(cfg.root))
    (Path(cfg.root) / "Bedroom/train/bedroom/3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png"):
        stream[torch.tensor([3])]


# -------------------------------------------------------------------------------------------------- attributes
def test_a_table_of_attributes_joins_by_name_whatever_its_order(tmp_path: Path, cfg: params.Data) -> None:
    make_bedroom(Path(cfg.root))
    rows = [f"{i:040x},{i - 4.5},{0.5 - i % 2}" for i in range(10)]
    (tmp_path / "a.csv").write_text("\n".join(["image,rusty,indoor lighting", *reversed(rows)]) + "\n")
    meta = run("Bedroom", cfg, tmp_path / "out", tmp_path / "a.csv")
    assert meta["attributes"] == ["rusty", "indoor lighting"]
    expected = [[int(i > 4), int(i % 2 == 0)] for i in range(10)]
    assert np.load(tmp_path / "out/attributes_train.npy").tolist() == expected


def test_a_table_joins_names_that_differ_in_unicode_form_alone(tmp_path: Path, cfg: params.Data) -> None:
    rows = ["image,rusty"]
    for part in ("train", "test"):
        for i in range(5):
            name = f"{part}/bedroom/{i}é.png"
            save_image(Path(cfg.root) / "Bedroom" / unicodedata.normalize("NFC", name), i)
            rows.append(f"{unicodedata.normalize('NFD', name)},{i - 2}")
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    run("Bedroom", cfg, tmp_path / "out", tmp_path / "a.csv")
    assert np.load(tmp_path / "out/attributes_test.npy")[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_a_table_without_an_image_or_with_words_is_refused(tmp_path: Path, cfg: params.Data) -> None:
    make_bedroom(Path(cfg.root))
    (tmp_path / "a.csv").write_text(f"image,rusty\n{0:040x},1\n")
    with pytest.raises(UserError, match="no row for 9 of 10 train images"):
        run("Bedroom", cfg, tmp_path / "out", tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(f"image,rusty\n{0:040x},yes\n")
    with pytest.raises(UserError, match="not a table of attributes"):
        run("Bedroom", cfg, tmp_path / "out", tmp_path / "a.csv")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_images_that_were_cut_off_are_one_message(keep: int, tmp_path: Path) -> None:
    np.save(tmp_path / "images_train.npy", np.zeros((4, 8, 8, 3), np.uint8))
    data = (tmp_path / "images_train.npy").read_bytes()
    (tmp_path / "images_train.npy").write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"images_train\.npy: not a complete \.npy file"):
        images.open_images(tmp_path / "images_train.npy", tmp_path)
