"""The commands for a user's own pictures: what they write, and every mistake as one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffsiam import cli, runtime
from diffsiam.evaluation import probmask
from diffsiam.generation import figures, pictures
from diffsiam.generation import model as guided
from diffsiam.params import Runtime
from tests.generation import tiny_guided
from tests.training import tiny

PARAMS = json.dumps(
    {"generation": {**tiny_guided.OVER, "ranges": []}, "runtime": {"device": "cpu", "precision": "fp32", "threads": 1}}
)
TILE = 128 // tiny_guided.SIDE * tiny_guided.SIDE + 2


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with trained networks, two pictures of different sizes, and what is no picture."""
    results = tiny_guided.results(tmp_path)
    tiny_guided.disdiff(results)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (50, 31, 3)), ("b.jpg", (9, 12, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(name)
    Path("text.png").write_text("no picture")
    Path("empty.jpg").touch()
    Image.new("F", (9, 9)).save("float.tif")
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save("avif.jpg", "AVIF")
    damaged = bytearray(Path("avif.jpg").read_bytes())
    at = damaged.rindex(b"mdat") + 4
    damaged[at : at + 64] = bytes(64)
    Path("avif.jpg").write_bytes(damaged)
    folder = results / "probmask" / "sprites" / "diffsiam_hier" / "seed0"
    for stem, name, masked in (("Red_left_3", "Red left", True), ("Red_left_all", "Red left", False)):
        weight = np.zeros(tiny_guided.DIM, np.float32)
        weight[: 3 if masked else None] = 1
        c = probmask.Classifier(name, weight, 0.0, 0 * weight, 0 * weight + 1, masked=masked)
        probmask.write(folder / f"{stem}.safetensors", c, {})
    return tmp_path


def call(*arguments: str) -> int:
    demo = str(tiny.ROOT / "workflow" / "presets" / "demo.yaml")
    return cli.main([*arguments, "--params", demo, "--params", PARAMS])


def strip(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def reconstruction(path: str, *, masked: bool = False) -> np.ndarray:
    """Inversion and sampling given z, of stored levels."""
    model = tiny_guided.model(mask_by_step=masked)
    z, x_T = model.latents(pictures.read_pictures([Path(path)], tiny_guided.SIDE))
    return figures.to_stored(model.sample(x_T, z))[0].astype(int)


def test_counterfactual_writes_a_row_per_range_from_source_to_target(place: Path) -> None:
    assert call("counterfactual", "a.png", "b.jpg", "--segments", "0-2", "1-1", "--out", "new/strip.png") == 0
    got = strip("new/strip.png")
    assert got.shape == (4 * TILE, 4 * TILE, 3)  # of either kind two rows; source, two scales, target
    source, target = got[1 : TILE - 1, 1 : TILE - 1], got[1 : TILE - 1, -TILE + 1 : -1]
    zoom = 128 // tiny_guided.SIDE
    cropped = Image.open("b.jpg").convert("RGB").resize((10, 8), Image.Resampling.BICUBIC).crop((1, 0, 9, 8))
    assert (target[::zoom, ::zoom] == np.asarray(cropped)).all()
    assert (got[TILE + 1 : 2 * TILE - 1, 1 : TILE - 1] == source).all()
    # On the empty range the scales tell nothing, unless x_T goes along.
    one, other = np.split(got[:, TILE : 3 * TILE].reshape(4, TILE, 2 * TILE, 3), 2, axis=2)
    assert [(one[row] == other[row]).all() for row in range(4)] == [False, False, False, True]
    one_way = one[3, 1:-1:zoom, 1:-1:zoom].astype(int)
    assert np.abs(one_way - reconstruction("a.png")).max() <= 1


def test_manipulate_writes_the_picture_and_every_scale_and_takes_the_fewest_dimensions(place: Path) -> None:
    assert call("manipulate", "a.png", "--attribute", "red_LEFT", "--scale", "-3", "0", "6.8", "--out", "s.png") == 0
    assert strip("s.png").shape == (TILE, 4 * TILE, 3)
    assert call("manipulate", "a.png", "--attribute", "Red left", "--scale", "6.8", "--out", "three.png") == 0
    assert (strip("three.png")[:, -TILE:] == strip("s.png")[:, -TILE:]).all()
    arguments = ["manipulate", "a.png", "--attribute", "Red left", "--scale", "6.8", "--out", "all.png"]
    assert call(*arguments, "--dims", "all") == 0
    assert (strip("three.png")[:, -TILE:] != strip("all.png")[:, -TILE:]).any()


def test_ditis_manipulations_start_from_an_inversion_with_all_of_z(place: Path) -> None:
    """As the pictures of the figures do."""
    folder = tiny_guided.results(place, "diti") / "probmask" / "sprites"
    shutil.copytree(folder / "diffsiam_hier", folder / "diti")
    given = ["--method", "diti", "--attribute", "Red left", "--scale", "0", "--out", "d.png"]
    assert call("manipulate", "a.png", *given) == 0
    zoom = 128 // tiny_guided.SIDE
    shown = strip("d.png")[1:-1:zoom, TILE + 1 : -1 : zoom].astype(int)
    assert np.abs(shown - reconstruction("a.png")).max() <= 1
    assert np.abs(shown - reconstruction("a.png", masked=True)).max() > 5


def test_a_picture_of_a_turned_camera_is_upright_and_16_bits_are_scaled(tmp_path: Path) -> None:
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, :8] = 255  # white on the left of what the sensor saw
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(half).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    Image.fromarray(half[:, :, 0].T.astype(np.uint16) * 257).save(tmp_path / "scan.png")
    phone, scan = pictures.read_pictures([tmp_path / "phone.jpg", tmp_path / "scan.png"], 16)
    assert (phone[:, :8] > 0.9).all()
    assert (phone[:, 8:] < -0.9).all()
    assert np.allclose(scan, phone, atol=0.1)


@pytest.mark.parametrize("method", ["diffsiam_hier", "disdiff"])
@pytest.mark.parametrize("guidance", ["w_t", "score"])
def test_restored_is_the_literal_x0_hat_of_the_noised_picture(place: Path, guidance: str, method: str) -> None:
    """Segments are given with zeros elsewhere, codes by the fields that are theirs."""
    trained = pictures.Trained(
        place / "results", "sprites", method, 0, tiny_guided.settings(guidance=guidance), tiny.section(Runtime)
    )
    got = pictures.restored(place / "a.png", ["0-2", "1-3", "0-0"], [400, 700], trained, noise_seed=3)
    dm, encoder, decoder = tiny_guided.networks()
    fields = tiny_guided.code_decoder(dm)
    x0 = pictures.read_pictures([place / "a.png"], tiny_guided.SIDE)
    noise = torch.randn(x0.shape[1:], generator=runtime.generator(3, "restored", 0))
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    width = tiny_guided.DIM // tiny_guided.SEGMENTS
    with torch.no_grad():
        z = encoder(x0)
        for i, t in enumerate((400, 700)):
            signal, sigma, before = abar[t - 1].sqrt(), (1 - abar[t - 1]).sqrt(), abar[t - 2]
            x = (signal * x0 + sigma * noise).float()
            trunk, eps = dm(x, torch.tensor([t]))
            alone = (x - sigma * eps) / signal
            strength = (1 - before) / before.sqrt() if guidance == "w_t" else sigma**2 / signal  # Eq. 3.8 in x0
            expected = [alone]
            for first, end in ((0, 2), (1, 3), (0, 0)):
                if method == "disdiff":
                    own = [fields.field(z, trunk, torch.tensor([code])) for code in range(first, end)]
                    expected.append(alone + strength * sum(own))
                    continue
                seen = torch.zeros_like(z)
                seen[:, first * width : end * width] = z[:, first * width : end * width]
                expected.append(alone + strength * decoder(seen, trunk))
            levels = [((e.clamp(-1, 1) + 1) * 127.5)[0].permute(1, 2, 0).numpy() for e in expected]
            assert np.abs(got["images"][i] - np.stack(levels)).max() <= 0.51  # rounding to whole grey levels
            picture = ((x0 + 1) * 127.5)[0].permute(1, 2, 0).numpy()
            wanted = [((level - picture) ** 2).mean() ** 0.5 for level in levels]
            assert got["errors"][i] == pytest.approx(wanted, abs=0.5)
    different = {image.tobytes() for image in got["images"].reshape(-1, *x0.shape[2:], 3)}
    assert len(different) == (8 if method == "diffsiam_hier" else 6)  # by no code the diffusion model is alone


def test_a_range_of_segments_is_given_to_its_ends_and_no_number_beyond(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, z = [], torch.arange(1.0, tiny_guided.DIM + 1)[None]
    monkeypatch.setattr(guided.Guided, "encode", lambda self, x0: z)
    monkeypatch.setattr(guided.Guided, "estimate", lambda self, x, t, given: (told.append(given), x)[1])
    trained = pictures.Trained(
        place / "results", "sprites", "diffsiam_hier", 0, tiny_guided.settings(), tiny.section(Runtime)
    )
    pictures.restored(place / "a.png", ["1-3", "0-4"], [400], trained, noise_seed=0)
    assert told[0] is None
    assert torch.equal(told[1][0], torch.tensor([*[0.0] * 4, *range(5, 13), *[0.0] * 4]))
    assert torch.equal(told[2], z)


def test_restore_writes_a_labelled_strip(place: Path) -> None:
    assert call("restore", "a.png", "--segments", "0-2", "0-4", "--levels", "100", "700", "--out", "new/r.png") == 0
    assert strip("new/r.png").shape[1] == 2700  # 9 inches
    assert Path("new/r.pdf").is_file()


COUNTERFACTUAL = ["counterfactual", "a.png", "b.jpg", "--segments", "0-2", "--out", "x.png"]
RESTORE = ["restore", "a.png", "--segments", "0-2", "--out", "x.png"]
MANIPULATE = ["manipulate", "a.png", "--attribute", "Red left", "--out", "x.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["counterfactual", "a.png", "text.png", *COUNTERFACTUAL[3:]], ["text.png: not an image", "of no format"]),
        (["counterfactual", "a.png", "empty.jpg", *COUNTERFACTUAL[3:]], ["empty.jpg: not an image", "empty"]),
        (["counterfactual", "a.png", "avif.jpg", *COUNTERFACTUAL[3:]], ["avif.jpg: not an image", "damaged"]),
        (["counterfactual", "a.png", "float.tif", *COUNTERFACTUAL[3:]], ["float.tif: not an image", "mode F"]),
        (["counterfactual", "a.png", "c.png", *COUNTERFACTUAL[3:]], ["c.png: no such file"]),
        ([*COUNTERFACTUAL, "--segments", "0-9"], ["'0-9'", "4 segments", "0 <= A <= B <= 4"]),
        ([*COUNTERFACTUAL, "--scales", "2"], ["--scales 2", "0 to 1"]),
        ([*COUNTERFACTUAL, "--scales=-0.5"], ["--scales -0.5", "0 to 1"]),
        ([*COUNTERFACTUAL, "--method", "pdae"], ["no trained pdae on sprites", "diffsiam_hier on sprites, seed0"]),
        ([*COUNTERFACTUAL, "--pretrain", "CelebA"], ["on CelebA", "diffsiam_hier on sprites, seed0"]),
        (
            [*COUNTERFACTUAL, "--results", "nowhere"],
            ["There is none", "snakemake --cores all results/representation/sprites"],
        ),
        ([*COUNTERFACTUAL, "--out", "x.jpg"], ["x.jpg", "ends with .png"]),
        (["restore", "text.png", *RESTORE[2:]], ["text.png: not an image"]),
        ([*RESTORE, "--levels", "0", "500"], ["--levels 0 500", "1 to 1000"]),
        ([*RESTORE, "--segments", "3-9"], ["'3-9'", "4 segments"]),
        (["manipulate", "text.png", *MANIPULATE[2:]], ["text.png: not an image"]),
        ([*MANIPULATE, "--attribute", "Smiling"], ["no attribute 'Smiling'", "There are: Red_left"]),
        ([*MANIPULATE, "--dims", "16"], ["no classifier of 16 dimensions", "There are: 3, all"]),
    ],
)
def test_a_mistake_is_one_message_that_lists_what_exists(
    place: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "images/s" not in line]
    assert len(said) == 1
    for word in words:
        assert word in said[0]
    assert not list(place.glob("x.*"))


def test_without_attribute_classifiers_the_command_that_fits_one_is_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (place / "results" / "probmask").rglob("*.*"):
        path.unlink()
    assert call(*MANIPULATE) == 2
    said = capsys.readouterr().err
    assert "results/representation/sprites/diffsiam_hier/seed0/encoder_ema.safetensors" in said
    assert "diffsiam probmask" in said
