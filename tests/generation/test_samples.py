"""Samples of the diffusion model alone: the sampler's own, with distances that a copy cannot hide from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffsiam import cli, runtime
from diffsiam.diffusion import ddim
from diffsiam.diffusion.schedule import Schedule
from diffsiam.generation import samples
from diffsiam.params import Runtime
from tests.generation import tiny_guided
from tests.generation.test_pictures import call
from tests.training import tiny


def test_distance_is_the_smallest_root_mean_square_to_an_image_or_its_mirror_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samples, "_BLOCK", 2)
    rng = np.random.default_rng(0)
    images, train = (rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8) for n in (5, 9))
    images[2] = train[4][:, ::-1]
    expected = [min(((a.astype(float) - b) ** 2).mean() ** 0.5 for x in train for b in (x, x[:, ::-1])) for a in images]
    found = samples.nearest(images, torch.from_numpy(train))
    assert found == pytest.approx(expected, abs=1e-2)
    assert found[2] == pytest.approx(0, abs=1e-2)


def test_samples_come_from_their_seed_whatever_the_batch_and_a_copy_is_told(tmp_path: Path) -> None:
    results = tiny_guided.results(tmp_path)
    folders = results / "data" / "sprites", results / "diffusion" / "sprites"

    def drawn(count: int, seed: int, batch_size: int) -> dict[str, np.ndarray]:
        cfg = tiny_guided.settings(batch_size=batch_size, clip=True, solver="dpmpp")
        return samples.draw(cfg, tiny.section(Runtime), *folders, count=count, seed=seed, root=tmp_path)

    made = drawn(5, 1, 2)
    assert (made["images"] == drawn(7, 1, 7)["images"][:5]).all()
    assert (made["images"] != drawn(5, 2, 2)["images"]).any()
    cfg, dm = tiny_guided.settings(), tiny.diffusion_model()
    noise = torch.randn(3, tiny.SIDE, tiny.SIDE, generator=runtime.generator(1, "samples", 3))[None]
    with torch.no_grad():
        expected = ddim.sample(dm.eval().predict_noise, noise, cfg.steps, Schedule(), clip=True, solver="dpmpp")
    level = ((expected.clamp(-1, 1) + 1) * 127.5)[0].permute(1, 2, 0).numpy()
    assert np.abs(made["images"][3] - level).max() <= 0.51
    assert not made["copied"].any()
    train = np.load(folders[0] / "images_train.npy")
    train[8] = made["images"][3][:, ::-1]
    np.save(folders[0] / "images_train.npy", train)
    assert drawn(5, 1, 2)["copied"].tolist() == [False, False, False, True, False]


def test_a_copy_is_nearer_than_a_hundredth_of_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 at 10, 11, .. 21 the hundredth lies at 10.11."""
    results = tiny_guided.results(tmp_path)
    seen = []

    def nearest(images: np.ndarray, train: torch.Tensor) -> np.ndarray:
        seen.append(images)
        return np.array([5.0, 10.1, 10.12, 30.0, *range(10, 22)])

    monkeypatch.setattr(samples, "nearest", nearest)
    folders = results / "data" / "sprites", results / "diffusion" / "sprites"
    made = samples.draw(tiny_guided.settings(), tiny.section(Runtime), *folders, count=4, seed=0, root=tmp_path)
    assert made["copied"].tolist() == [True, True, False, False]
    assert (made["distances"].tolist(), made["reference"].tolist()) == ([5, 10.1, 10.12, 30], [*range(10, 22)])
    assert np.array_equal(seen[0], np.concatenate([made["images"], np.load(folders[0] / "images_test.npy")]))


def test_the_command_writes_a_strip_and_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_guided.results(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call("samples", "--count", "9", "--out", "new/s.png") == 0
    assert Path("new/s.png").is_file()
    assert capsys.readouterr().out.startswith(
        "9 samples, 0 of them copies of a training image; distance to the nearest"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0"], ["--count 0", "1 sample or more"]),
        (["--pretrain", "CelebA"], ["results/data/CelebA/meta.json", "snakemake"]),
        (["--out", "x.jpg"], ["x.jpg", "ends with .png"]),
    ],
)
def test_a_mistake_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tiny_guided.results(tmp_path)
    monkeypatch.chdir(tmp_path)
    demo = str(tiny.ROOT / "workflow" / "presets" / "demo.yaml")
    assert cli.main(["samples", "--out", "x.png", "--params", demo, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words)
    assert not list(tmp_path.glob("x.*"))
