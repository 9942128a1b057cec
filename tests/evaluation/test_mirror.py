"""Features of mirror images: extracted once, they are those of the mirrored images themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffsiam import params, runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import features, store
from diffsiam.models.encoder import Encoder

RUNTIME = params.Runtime("cpu", "fp32", 1, False, False, "auto", 5.0, False)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with an encoder, its config.json and a small data set."""
    torch.manual_seed(0)
    runtime.save_weights(tmp_path / "encoder_ema.safetensors", Encoder(2, 8).state_dict())
    runtime.write_json(tmp_path / "config.json", {"encoder_width": 2, "image_size": 8})
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 3)):
        np.save(tmp_path / f"images_{part}.npy", rng.integers(0, 256, (count, 8, 8, 3), np.uint8))
        np.save(tmp_path / f"labels_{part}.npy", np.zeros(count, np.int64))
    meta = {"dataset": "CelebA", "classes": ["face"], "metric": "accuracy", "counts": {"train": 5, "test": 3}}
    runtime.write_json(tmp_path / "meta.json", meta | {"splits": {"val": [4]}})
    return tmp_path


def extracted(folder: Path, mirror: bool) -> store.FeatureSet:
    weights, out = folder / "encoder_ema.safetensors", folder / "z.npz"
    features.run(weights, folder, params.Features(batch_size=2), RUNTIME, out, mirror=mirror)
    return store.read(out, folder / "meta.json")


def test_the_mirrored_row_is_the_encoder_of_the_mirrored_image(made: Path) -> None:
    found = extracted(made, True)
    model, _ = features.load_encoder(made / "encoder_ema.safetensors")
    image = np.load(made / "images_train.npy")[3, :, ::-1].astype(np.float32)  # mirrored by hand
    with torch.no_grad():
        z = model(torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None])
    assert found.train_mirrored is not None
    np.testing.assert_allclose(found.train_mirrored[3], z[0], atol=1e-5)
    assert np.abs(found.train_mirrored - found.train).max() > 1e-3


def test_without_being_asked_for_there_are_none_and_the_rest_is_the_same(made: Path) -> None:
    plain, more = extracted(made, False), extracted(made, True)
    assert plain.train_mirrored is None
    assert np.array_equal(plain.train, more.train)
    assert np.array_equal(plain.test, more.test)


def test_mirrored_features_of_another_shape_are_damage(made: Path) -> None:
    found = extracted(made, False)
    store.write(
        made / "z.npz", found.train, found.train_labels, found.test, found.test_labels, mirrored=found.train[:-1]
    )
    with pytest.raises(UserError, match=r"train_mirrored has shape \(4, 16\), train \(5, 16\)"):
        store.read(made / "z.npz", made / "meta.json")
