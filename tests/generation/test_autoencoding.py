"""Which metrics can be taken, and FID's rows by a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.evaluation import hub, quality
from diffsiam.generation import autoencoding
from tests.generation import tiny_guided


def test_only_what_is_asked_for_fits_the_images_and_is_there_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "found", lambda metric: tmp_path / metric)
    assert set(autoencoding.judges(32, frechet=True)) == {"lpips", "fid"}
    assert set(autoencoding.judges(64, frechet=False)) == {"lpips"}
    assert capsys.readouterr().err == ""
    assert set(autoencoding.judges(16, frechet=True)) == {"fid"}
    assert capsys.readouterr().err == "No lpips among the numbers: AlexNet needs 32 pixels a side, met 16.\n"
    monkeypatch.setattr(hub, "found", lambda metric: None)
    assert autoencoding.judges(32, frechet=True) == {}


def test_lpips_is_of_clamped_images_in_their_own_range(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(images: torch.Tensor, others: torch.Tensor, device: torch.device) -> float:
        assert (images.min(), images.max()) == (-1, 1)
        return float((images - others).abs().max())

    monkeypatch.setattr(quality, "lpips", seen)
    x0 = torch.ones(2, 3, 8, 8)
    x0[0] = -1
    found = autoencoding.scores(x0, x0 * 3, torch.device("cpu"), lpips=True)
    assert found["lpips"] == 0
    assert found["mse"] == pytest.approx(1)  # of (x + 1) / 2, not clamped: -1 for 0 and 2 for 1
    assert "lpips" not in autoencoding.scores(x0, x0, torch.device("cpu"), lpips=False)


def test_fid_is_of_the_images_and_what_comes_of_them_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(images: torch.Tensor) -> np.ndarray:
        assert images.dtype == torch.uint8
        return images.double().mean(dim=1).flatten(1).numpy() / 255

    monkeypatch.setattr(quality, "inception", lambda *_: look)
    monkeypatch.setattr(autoencoding, "_BLOCK", 4)
    model, images = tiny_guided.model(), pixels.to_uint8(tiny_guided.images(11))
    chosen = np.array([7, 2, 9, 0, 10, 5])
    rows = autoencoding.distances(model, images, chosen, Path("w.pth"))
    assert [(row["measure"], row["metric"], row["images"]) for row in rows] == [("frechet", "fid", 6)] * 3

    x0 = images[torch.from_numpy(chosen)].permute(0, 3, 1, 2) / 127.5 - 1
    z, seed = model.encode(x0), model.cfg.pairs.seed

    def noise(purpose: str) -> torch.Tensor:
        return torch.stack(
            [torch.randn(x0[0].shape, generator=runtime.generator(seed, purpose, int(i))) for i in chosen]
        )

    made = {
        "inferred_x_T": model.sample(model.invert(x0, z), z),
        "random_x_T": model.sample(noise("random_x_T"), z),
        "frozen_model": model.sample(noise("frozen_model"), None),
    }
    shown = look(pixels.to_uint8(x0))
    expected = {name: quality.frechet(shown, look(pixels.to_uint8(x))) for name, x in made.items()}
    assert {row["subject"]: row["value"] for row in rows} == pytest.approx(expected, rel=1e-2)
    assert len(set(expected.values())) == 3
