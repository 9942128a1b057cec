"""Row ``frozen_dm``: block and level are chosen on validation images, and the encoder is stored like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffsiam import runtime
from diffsiam.data import pixels
from diffsiam.data.grid import Grid
from diffsiam.errors import UserError
from diffsiam.evaluation import features, frozen
from diffsiam.params import FrozenDm, Runtime
from tests.training import tiny

LEVELS = (1, 300)
META = {"dataset": "stripes", "classes": ["a", "b"], "metric": "accuracy", "attributes": []}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and light, that any block tells apart where noise does not drown them."""
    folder = tiny.data(tmp_path_factory.mktemp("frozen") / "stripes")
    labels = np.arange(tiny.IMAGES) % 2
    images = (tiny.images() // 8 + (labels * 200)[:, None, None, None]).astype(np.uint8)
    np.save(folder / "images_train.npy", images)
    np.save(folder / "labels_train.npy", labels)
    np.save(folder / "attributes_train.npy", np.stack([labels, 1 - labels], axis=1).astype(np.int8))
    sums = {"images_train.npy": runtime.sha256(folder / "images_train.npy")}
    facts = {"image_size": tiny.SIDE, "sha256": sums, "splits": {"val": list(range(0, tiny.IMAGES, 3))}}
    runtime.write_json(folder / "meta.json", META | facts)
    return folder


def run(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    cfg = tiny.section(FrozenDm, **{"levels": list(LEVELS), **changes})
    dm = tiny.saved_diffusion_model(out.parent / "dm")
    frozen.run(cfg, tiny.section(Runtime), data, dm, out, seed=2, root=out)
    found: dict[str, Any] = runtime.read_json(out / "config.json")
    return found


def test_the_best_pair_on_validation_images_is_stored_and_loads_as_an_encoder(data: Path, tmp_path: Path) -> None:
    record = run(data, tmp_path / "out")
    scores = np.array(record["grid"]["scores"])
    assert scores.shape == (4, 2)
    assert scores.max() == scores[record["block"] - 1, LEVELS.index(record["level"])] == 100
    assert record["grid"]["widths"][record["block"] - 1] == record["dim"]
    assert (tmp_path / "out/history.csv").read_text() == "step,loss\n"
    model, side = features.load_encoder(tmp_path / "out/encoder.safetensors")
    assert side == tiny.SIDE
    images = np.load(data / "images_train.npy")
    z = features.extract(model, images, 7, torch.device("cpu"))
    expected = frozen.extract(tiny.diffusion_model(), torch.from_numpy(images), record["level"], 2)
    np.testing.assert_allclose(z, expected[record["block"] - 1], atol=1e-5)
    twin, _ = features.load_encoder(tmp_path / "out/encoder_ema.safetensors")
    x = pixels.to_float(torch.from_numpy(images))
    assert torch.equal(twin(x), model(x))


def test_a_given_pair_is_taken_unasked(data: Path, tmp_path: Path) -> None:
    record = run(data, tmp_path / "out", block=3, level=77)
    assert (record["block"], record["level"], record["grid"]) == (3, 77, None)
    with pytest.raises(UserError, match=r"block: met 5, but the way up of .* has 4 blocks. Choose 1 to 4"):
        run(data, tmp_path / "more", block=5, level=77)
    assert not (tmp_path / "more").exists()


def test_the_choice_sees_no_image_but_the_validation_images_score_and_is_by_their_metric() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(400) < 100).astype(np.int64)
    validation = np.arange(0, 400, 4)
    told, noise = np.c_[labels + rng.normal(0, 0.1, 400), rng.normal(size=400)], rng.normal(size=(400, 2))
    assert frozen.score(told.astype(np.float32), labels, validation, "accuracy") == 100
    assert frozen.score(noise.astype(np.float32), labels, validation, "accuracy") == 75  # says the larger class
    assert frozen.score(noise.astype(np.float32), labels, validation, "mean_per_class") == 50
    flipped = labels.copy()
    flipped[validation] = 1 - labels[validation]  # fitted on them, it would not be all wrong
    assert frozen.score(told.astype(np.float32), flipped, validation, "accuracy") == 0


def test_it_is_chosen_by_classes_by_factors_or_by_attributes_whichever_there_are(data: Path) -> None:
    (labels,), metric = frozen.told(data, META)
    assert (labels.tolist(), metric) == ((np.arange(tiny.IMAGES) % 2).tolist(), "accuracy")
    sizes = {"names": ["hue", "size"], "sizes": [4, 5]}
    factors, metric = frozen.told(data, META | {"classes": ["all"], "grid": sizes})
    assert np.array_equal(np.stack(factors, 1), Grid.of({"grid": sizes}).factors(np.arange(20)))
    assert metric == "mean_per_class"
    attributes, metric = frozen.told(data, META | {"classes": [], "attributes": ["dark", "light"]})
    assert ([a.tolist()[:3] for a in attributes], metric) == ([[0, 1, 0], [1, 0, 1]], "mean_per_class")
    with pytest.raises(UserError, match=r"neither classes, factors nor attributes.*frozen_dm.block"):
        frozen.told(data, META | {"classes": []})
