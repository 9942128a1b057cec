"""Single images: every mode of Pillow, orientation, why one cannot be read; and, bounded and seeded, all of Pillow's
formats whole and damaged: an image or a cause, never anything else."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsiam import params, runtime
from diffsiam.data import images, prepare
from diffsiam.errors import UserError
from tests.data.small_data import make_folders

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about what it meets
RNG = functools.partial(np.random.default_rng, 0)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int = 24, height: int = 20) -> Image.Image:
    """Smooth colours: what compression and colour spaces change little."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(np.stack([255 * x, 255 * y, 128 + 60 * x * y], axis=2).round().astype(np.uint8))


# ------------------------------------------------------------------------------------------------------- modes
COLOUR = {
    "RGB": 0,
    "RGBA": 0,
    "RGBX": 0,
    "CMYK": 0,
    "RGBa": 1,
    "YCbCr": 3,
    "HSV": 8,
    "LAB": 32,
}  # levels; LAB: at its gamut's edge
GREY = ["L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"]
PALETTE = ["P", "PA", "1"]
REFUSED = ["I", "F"]


def test_the_modes_below_are_all_that_pillow_has() -> None:
    assert sorted([*COLOUR, *GREY, *PALETTE, *REFUSED]) == sorted(Image.MODES)


@pytest.mark.parametrize("mode", COLOUR)
def test_a_colour_mode_shows_the_same_picture(mode: str) -> None:
    source = picture()
    if mode == "RGBa":  # half transparent, premultiplied
        source.putalpha(128)
    made = images.to_rgb(source.convert(mode))
    assert made.mode == "RGB"
    assert np.abs(np.asarray(made, int) - np.asarray(picture(), int)).max() <= COLOUR[mode]


@pytest.mark.parametrize("mode", GREY)
def test_a_grey_mode_of_8_or_16_bits_keeps_black_white_and_what_lies_between(mode: str) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if mode.startswith("I;16"):
        order = {"I;16B": ">", "I;16N": "="}.get(mode, "<")
        image = Image.frombytes(mode, (16, 16), (ramp.astype(f"{order}u2") * 257).astype(f"{order}u2").tobytes())
    else:
        image = Image.fromarray(ramp).convert("LA").convert(mode)
    made = np.asarray(images.to_rgb(image))
    assert (made == ramp[:, :, None]).all()


@pytest.mark.parametrize("mode", PALETTE)
def test_a_palette_shows_its_colours(mode: str) -> None:
    blocks = Image.fromarray(np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((4, 4), np.uint8)))
    image = blocks.convert("P").convert(mode) if mode == "PA" else blocks.convert(mode)
    assert np.array_equal(np.asarray(images.to_rgb(image)), np.asarray(blocks.convert("RGB")))


@pytest.mark.parametrize("mode", REFUSED)
def test_numbers_without_a_known_white_are_refused_by_their_mode(mode: str) -> None:
    with pytest.raises(images.BrokenImage, match=f"of mode {mode}, whose white is not known"):
        images.decode(encoded(Image.new(mode, (4, 4)), "TIFF"))


def tiff(bits: int, data: bytes, width: int, photometric: int = 1) -> bytes:
    """One grey row of ``bits`` a pixel, uncompressed, as TIFF 6.0 lays it out; 0 is black, or with ``photometric`` 0
    white."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(np.uint16([[0, 257, 32768, 65535]])), "PNG"), [0, 1, 128, 255]),
        (encoded(Image.fromarray(np.uint16([[0, 257, 32768, 65535]])), "TIFF"), [0, 1, 128, 255]),
        (encoded(Image.fromarray(np.uint16([[0, 65535]]).repeat(8, 1).repeat(16, 0)), "JPEG2000"), [0] * 8 + [255] * 8),
        (b"P5 4 1 65535\n" + np.array([0, 257, 32768, 65535], ">u2").tobytes(), [0, 1, 128, 255]),
        (b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes(), [0, 128, 255]),
        (tiff(12, bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10]), 4), [0, 255, 128, 1]),
        (tiff(16, np.array([0, 257, 65535], "<u2").tobytes(), 3, photometric=0), [255, 254, 0]),
        (tiff(8, bytes([0, 1, 255]), 3, photometric=0), [255, 254, 0]),
    ],
    ids=[
        "png",
        "tiff",
        "jpeg 2000",
        "pgm",
        "pgm of 10 bits",
        "tiff of 12 bits",
        "white is zero",
        "white is zero, 8 bits",
    ],
)
def test_files_of_more_than_8_bits_are_scaled(data: bytes, expected: list[int]) -> None:
    assert np.asarray(images.decode(data))[0, :, 1].tolist() == expected


# -------------------------------------------------------------------------------------------------- orientation
def test_orientation_is_applied_when_asked_and_left_alone_otherwise() -> None:
    marked = Image.new("RGB", (16, 8))
    marked.paste((255, 255, 255), (0, 0, 8, 8))  # white on the left
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by a quarter, clockwise
    data = encoded(marked, "PNG", exif=exif)
    assert np.array_equal(np.asarray(images.decode(data)), np.asarray(marked))
    turned = images.decode(data, upright=True)
    assert turned.size == (8, 16)
    assert (np.asarray(turned)[:8] == 255).all()
    assert not np.asarray(turned)[8:].any()


# ------------------------------------------------------------------------------------------------------- causes
WHOLE = encoded(picture(200, 160), "JPEG")
CAUSES = [
    ("x.jpg", b"", "empty"),
    ("x.jpg", bytes(5000), "of zeros alone"),
    (
        "x.jpg",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "Git LFS pointer .*git lfs pull",
    ),
    ("x.jpg", b"\n<!DOCTYPE html><html>not found</html>", "web page in place of the image"),
    ("x.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "of no format that Pillow reads .*PNG or JPEG"),
    ("x.ppm", b"P6\n15000 13000\n255\n", "larger than 179 megapixels"),
    ("x.png", encoded(picture(200, 160), "PNG")[:-100], r"damaged \(image file is truncated"),
    ("x.tif", encoded(Image.new("F", (4, 4)), "TIFF"), "of mode F"),
]


@pytest.mark.parametrize(("name", "data", "cause"), CAUSES, ids=[cause[:12] for *_, cause in CAUSES])
def test_the_message_says_why_an_image_cannot_be_read(
    tmp_path: Path, cfg: params.Data, name: str, data: bytes, cause: str
) -> None:
    top = make_folders(Path(cfg.root) / "Pets", {"train": {"a": 1}, "test": {"a": 1}})
    (top / "train" / "a" / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"Pets: 1 of 2 train images .*: 1 {cause}.*: train/a/{name}\."):
        prepare.run("Pets", cfg, tmp_path / "out")


def test_a_link_to_nothing_is_missing_and_a_disk_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("nowhere.png")
    with pytest.raises(images.BrokenImage, match=r"^missing$"):
        images.attempt(lambda: images.decode(tmp_path / "x.png"))

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/somewhere/x.png")

    with pytest.raises(images.BrokenImage, match=r"^not readable \(Input/output error\)$"):
        images.attempt(fail)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, ZeroDivisionError, OverflowError, MemoryError])
def test_whatever_a_decoder_raises_is_a_broken_image(kind: type[Exception]) -> None:
    def fail() -> None:
        raise kind

    with pytest.raises(images.BrokenImage, match=kind.__name__ if kind is not MemoryError else "memory"):
        images.attempt(fail)


def test_a_message_to_the_user_is_not_taken_for_a_broken_image() -> None:
    def fail() -> None:
        raise UserError("install it")

    with pytest.raises(UserError, match="install it"):
        images.attempt(fail)


def test_images_are_grouped_by_cause_however_much_of_each_is_missing(tmp_path: Path, cfg: params.Data) -> None:
    top = make_folders(Path(cfg.root) / "Pets", {"train": {"a": 1}, "test": {"a": 1}})
    for i in range(7):
        (top / "train" / "a" / f"cut{i}.jpg").write_bytes(WHOLE[: -100 - 11 * i])
    (top / "train" / "a" / "empty.png").write_bytes(b"")
    with pytest.raises(UserError) as e:
        prepare.run("Pets", cfg, tmp_path / "out")
    assert "8 of 9 train images" in str(e.value)
    assert "; 1 empty: train/a/empty.png." in str(e.value)
    named = ", ".join(f"train/a/cut{i}.jpg" for i in range(5))
    assert f"7 damaged (image file is truncated (.. bytes not processed)): {named}, ...;" in str(e.value)


def test_many_causes_are_cut_to_the_most_frequent() -> None:
    broken = [(f"{i}{cause}.png", cause) for i, cause in enumerate("aabbccddeefg")]
    said = images.causes(broken)
    assert said.startswith("2 a: 0a.png, 1a.png; 2 b: ")
    assert said.endswith("; 2 for 2 other causes")


def test_tolerated_images_are_said_with_their_cause(
    tmp_path: Path, cfg: params.Data, capsys: pytest.CaptureFixture[str]
) -> None:
    top = make_folders(Path(cfg.root) / "Pets", {"train": {"a": 9}, "test": {"a": 1}})
    (top / "train" / "a" / "empty.png").write_bytes(b"")
    prepare.run("Pets", dataclasses.replace(cfg, max_broken=0.1), tmp_path / "out")
    assert "Pets: left out 1 of 10 train images: 1 empty: train/a/empty.png\n" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- formats and damage
Image.init()
FORMATS = sorted(set(Image.SAVE) & set(Image.OPEN) - {"EPS"})  # which Pillow hands to a program of the machine's


@functools.cache
def whole_files() -> dict[str, bytes]:
    """Every format times every mode that it stores, with an orientation where it stores one."""
    found = {}
    exif = Image.Exif()
    exif[274] = 6
    for kind in FORMATS:
        for mode in Image.MODES:
            with contextlib.suppress(OSError, ValueError, KeyError):  # the format has no such mode
                found[f"{kind}-{mode.replace(';', '_')}"] = encoded(picture().convert(mode), kind, exif=exif)
    return found


def damaged(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """Cut, one bit turned, a block lost, a block of noise, a byte too many."""
    at = int(rng.integers(len(data)))
    yield data[:at]
    for kind in range(4):
        at = int(rng.integers(len(data))) if kind % 2 else int(rng.integers(min(len(data), 64)))
        block = int(rng.integers(1, 33))
        middle = [
            bytes([data[at] ^ (1 << int(rng.integers(8)))]),
            bytes(block),
            rng.bytes(block),
            data[at : at + 1] * 2,
        ]
        yield data[:at] + middle[kind] + data[at + (1 if kind in (0, 3) else block) :]


def test_every_mode_of_every_format_is_an_image_or_refused_by_its_mode() -> None:
    files = whole_files()
    assert {name.split("-")[0] for name in files} >= {
        "AVIF",
        "BLP",
        "DDS",
        "GIF",
        "JPEG",
        "PNG",
        "SPIDER",
        "TIFF",
        "WEBP",
    }
    for name, data in files.items():
        if stored_mode(data) in REFUSED and not (stored_mode(data) == "I" and name.startswith("PPM")):
            with pytest.raises(images.BrokenImage, match="of mode"):
                images.decode(data)
        else:
            assert images.decode(data).mode == "RGB", name


def stored_mode(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode


def test_a_damaged_file_is_an_image_or_a_cause_whatever_its_decoder_raises(tmp_path: Path, cfg: params.Data) -> None:
    """All of them under one class, as a downloader would save them; the run ends with the rest, and says why."""
    top = make_folders(Path(cfg.root) / "Pets", {"train": {"a": 3}, "test": {"a": 3}})
    rng, count = RNG(), 0
    for name, data in whole_files().items():
        for i, bad in enumerate([*damaged(data, rng), *damaged(data, rng)]):
            (top / "train" / "a" / f"{name}-{i}.jpg").write_bytes(bad)
            with contextlib.suppress(images.BrokenImage):
                assert images.decode(bad, upright=True).mode == "RGB"
            count += 1
    prepare.run("Pets", dataclasses.replace(cfg, max_broken=1.0), tmp_path / "out")
    meta = runtime.read_json(tmp_path / "out" / "meta.json")
    assert meta["counts"]["train"] + len(meta["broken"]) == count + 3
    assert len(meta["broken"]) > count // 4
    with pytest.raises(UserError, match="train images are missing or cannot be read"):
        prepare.run("Pets", cfg, tmp_path / "out")


def test_a_file_of_noise_behind_the_first_bytes_of_any_format_is_a_cause() -> None:
    """Formats that Pillow reads and does not write among them, by their published signatures."""
    rng = RNG()
    starts = [
        b"8BPS\0\1",
        b"\x12\xaf",
        b"\x59\xa6\x6a\x95",
        b"SIMPLE  =",
        b"\0\0\2\0",
        b"/* XPM */",
        b"\xb1\x68\xde\x3a",
    ]
    starts += [data[:n] for data in whole_files().values() for n in (4, 16)]
    for start in starts:
        for size in (0, 30, 3000):
            with contextlib.suppress(images.BrokenImage):
                assert images.decode(start + rng.bytes(size)).mode == "RGB"


def test_an_image_too_thin_to_resize_is_a_cause() -> None:
    with pytest.raises(images.BrokenImage):
        images.attempt(lambda: images.resize(Image.new("L", (1, 30_000_000)), 64))
