"""The public API from outside: what its names give, beside the same thing done by hand, and every mistake's message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import v2

import diffsiam
from diffsiam import api
from diffsiam.errors import UserError
from diffsiam.evaluation import probmask
from diffsiam.generation.counterfactual import lerp, slerp
from diffsiam.models.unet import DiffusionModel
from tests.generation import tiny_guided

SIDE = tiny_guided.SIDE
FEW = {"generation": {"steps": 5}}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a run, made tiny, with one attribute classifier on three dimensions and on all."""
    folder = tiny_guided.results(tmp_path_factory.mktemp("run"))
    for stem, masked in (("Red_left_3", True), ("Red_left_all", False)):
        weight = np.zeros(tiny_guided.DIM, np.float32)
        weight[: 3 if masked else None] = 1
        classifier = probmask.Classifier("Red left", weight, 0.0, 0 * weight, 0 * weight + 1, masked=masked)
        path = folder / "probmask" / "sprites" / "diffsiam_hier" / "seed0" / f"{stem}.safetensors"
        probmask.write(path, classifier, {})
    return folder


@pytest.fixture(scope="module")
def encoder(results: Path) -> Any:
    return diffsiam.load_encoder(
        results / "representation" / "sprites" / "diffsiam_hier" / "seed0" / "encoder_ema.safetensors"
    )


@pytest.fixture(scope="module")
def trained(results: Path) -> api.Representation:
    return diffsiam.load_representation(results, "sprites", device="cpu", params=FEW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of different sizes at different depths, and what is no picture."""
    rng = np.random.default_rng(1)
    for name, size in (("z.png", (20, 31)), ("a/1.png", (11, 9)), ("a/0.jpg", (SIDE, SIDE))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def stored(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def floating(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def back(images: torch.Tensor) -> np.ndarray:
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().movedim(-3, -1).numpy()


# ----------------------------------------------------------------------------------------------------- the names
def test_the_import_of_the_package_alone_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import diffsiam; new = {m.split('.')[0] for m in set(sys.modules) - "
        "before}; print(sorted(new - sys.stdlib_module_names), [m for m in sys.modules if m.startswith('diffsiam')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['diffsiam'] ['diffsiam']"


def test_every_name_is_the_apis_and_no_other_is_found() -> None:
    assert all(getattr(diffsiam, name) is getattr(api, name) for name in diffsiam.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_weights'"):
        _ = diffsiam.load_weights


# ------------------------------------------------------------------------------------------------------ features
def test_features_of_a_folder_are_those_of_its_pictures_by_path(encoder: Any, folder: Path) -> None:
    resize = v2.Compose([v2.Resize(SIDE, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(SIDE)])
    paths = [folder / name for name in ("a/0.jpg", "a/1.png", "z.png")]
    pictures = np.stack([np.asarray(resize(Image.open(path).convert("RGB"))) for path in paths])
    with torch.no_grad():
        expected = torch.cat([encoder.model(floating(picture[None])) for picture in pictures]).numpy()
    np.testing.assert_allclose(diffsiam.features(encoder, folder, device="cpu"), expected, atol=1e-5)
    np.testing.assert_allclose(diffsiam.features(encoder, paths[::-1], device="cpu"), expected[::-1], atol=1e-5)
    for given in (pictures, torch.from_numpy(pictures)):
        np.testing.assert_allclose(diffsiam.features(encoder, given, device="cpu"), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ evaluate
def gaussian(labels: list[Any], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 6) around a mean of each class."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(labels), count)
    means = 0.7 * np.random.default_rng(0).normal(size=(len(labels), 6))
    return means[codes] + rng.normal(size=(count, 6)), np.array(labels)[codes]


@pytest.mark.parametrize("labels", [[10, 20, 30, 40, 50], ["ant", "bee", "cat", "dog", "eel"]])
def test_the_linear_protocol_on_arrays_is_scikit_learns(labels: list[Any]) -> None:
    train, test = gaussian(labels, 200, 1), gaussian(labels, 150, 2)
    given = {"train": train[0], "train_labels": train[1], "test": test[0], "test_labels": test[1], "val": range(50)}
    params = {"linear": {"penalties": 4, "penalty_min": 0.1, "penalty_max": 100.0}}
    got = diffsiam.evaluate(given, protocol=["linear"], params=params)["linear"]

    def accuracy(penalty: float, fit: slice, x: np.ndarray, y: np.ndarray) -> float:
        model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(train[0][fit], train[1][fit])
        return 100 * float(model.score(x, y))

    curve = {p: accuracy(p, slice(50, None), train[0][:50], train[1][:50]) for p in (100.0, 10.0, 1.0, 0.1)}
    assert [entry["accuracy"] for entry in got["validation"]] == pytest.approx(list(curve.values()))
    assert got["l2"] == pytest.approx(max(curve, key=lambda penalty: curve[penalty]))
    assert got["accuracy"] == pytest.approx(accuracy(got["l2"], slice(None), *test))
    assert list(got["per_class"]) == [str(label) for label in labels]


def test_both_protocols_run_on_a_file_under_its_own_name(tmp_path: Path) -> None:
    train, test = gaussian(list("abcde"), 100, 1), gaussian(list("abcde"), 200, 2)
    np.savez(tmp_path / "mine.npz", train=train[0], train_labels=train[1], test=test[0], test_labels=test[1])
    got = diffsiam.evaluate(tmp_path / "mine.npz", params={"fewshot": {"episodes": 20}, "linear": {"penalties": 3}})
    assert {word: result["dataset"] for word, result in got.items()} == {"linear": "mine", "fewshot": "mine"}
    assert len(got["fewshot"]["shots"]["1"]["correct"]) == 20
    assert json.dumps(got)


# ------------------------------------------------------------------------------------------------------- pictures
def test_the_diffusion_model_is_diffusers_own_and_takes_the_step_less_one(results: Path) -> None:
    x, t = torch.randn(2, 3, SIDE, SIDE), torch.tensor([1, 1000])
    model = diffsiam.load_diffusion(results / "diffusion" / "sprites")
    with torch.no_grad():
        ours = DiffusionModel.load(results / "diffusion" / "sprites").predict_noise(x, t)
        assert torch.allclose(model(x, t - 1).sample, ours, atol=1e-5)


def test_inversion_gives_the_encoders_z_and_noise_that_leads_back(
    results: Path, encoder: Any, trained: api.Representation
) -> None:
    images = stored(3)
    errors = []
    for steps in (3, 30):
        model = diffsiam.load_representation(
            results, "sprites", device="cpu", params={"generation": {"steps": steps, "clip": False}}
        )
        z, x_T = diffsiam.invert(model, images)
        errors.append(float((model.model.sample(x_T, z) - floating(images)).square().mean()))
    with torch.no_grad():
        assert torch.allclose(z, encoder.model(floating(images)), atol=1e-5)
    assert errors[1] < errors[0]


def test_counterfactuals_are_algorithm_2_by_hand(trained: api.Representation) -> None:
    a, b = stored(2), stored(2, seed=1)
    got = diffsiam.counterfactual(trained, a, b, [(0, 2), (0, 4)], [0.0, 0.5, 1.0])
    assert got.shape == (2, 2, 3, SIDE, SIDE, 3)
    (z, x_T), (z_b, x_b) = diffsiam.invert(trained, a), diffsiam.invert(trained, b)
    half = torch.tensor([0.5])
    z_half = lerp(z, z_b, trained.model.edges, (0, 2), half)[:, 0]
    by_hand = back(trained.model.sample(slerp(x_T, x_b, half)[:, 0], z_half))
    assert np.abs(got[:, 0, 1].astype(int) - by_hand).max() <= 1
    assert np.abs(got[:, 1, 2].astype(int) - back(trained.model.sample(x_b, z_b))).max() <= 1
    assert (got[:, 0, 0] == got[:, 1, 0]).all()
    own = diffsiam.counterfactual(trained, a, b, [(0, 2)], [0.5], exchange_noise=False)
    assert np.abs(own[:, 0, 0].astype(int) - back(trained.model.sample(x_T, z_half))).max() <= 1


@pytest.mark.parametrize(("dims", "moved"), [(None, 3), (3, 3)])
def test_manipulation_moves_z_along_the_classifiers_dimensions(
    trained: api.Representation, dims: int | None, moved: int
) -> None:
    got = diffsiam.manipulate(trained, stored(2), "Red left", [0.0, 2.0], dims=dims)
    z, x_T = diffsiam.invert(trained, stored(2))
    direction = torch.zeros(tiny_guided.DIM)
    direction[:moved] = 1
    pushed = trained.model.sample(x_T, z + 2 * direction / direction.norm())
    assert np.abs(got[:, 1].astype(int) - back(pushed)).max() <= 1
    assert np.abs(got[:, 0].astype(int) - back(trained.model.sample(x_T, z))).max() <= 1


# ------------------------------------------------------------------------------------------------------- mistakes
def features_of(**changes: Any) -> dict[str, Any]:
    train, test = gaussian(list("abcde"), 60, 1), gaussian(list("abcde"), 60, 2)
    return {"train": train[0], "train_labels": train[1], "test": test[0], "test_labels": test[1]} | changes


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"test_labels": np.array(["a"] * 59 + ["z"])}, {}, "test_labels has classes that train_labels has not: 'z'"),
        ({"train": np.array([["1"] * 6] * 60)}, {}, r"train: met <U1 \(60, 6\), needed are numbers \(N, d\)"),
        ({"train_labels": np.arange(60.0)}, {}, r"train_labels: met float64 \(60,\), needed are whole numbers or text"),
        ({"test": np.full((60, 6), np.nan)}, {}, "test holds nan in image 0, and 60 of 60 images are not finite"),
        ({"test": np.zeros((60, 5))}, {}, "6 dimensions in train, 5 in test"),
        ({"val": [0, 60]}, {}, "val holds 2 indices from 0 to 60, allowed are 0 to 59"),
        ({}, {"metric": "top5"}, "metric: met 'top5', allowed are accuracy, mean_per_class"),
        ({}, {"protocol": ["knn"]}, "protocol: met knn, allowed are linear, fewshot"),
        ({}, {"params": {"linear": {"penalty": 1}}}, "linear.*penalty"),
        ({}, {}, "few-shot on features: 5 classes with 10 support and 15 query"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_evaluated_are_refused(changes: Any, options: Any, message: str) -> None:
    options = {"params": {"linear": {"penalties": 2}}} | options
    with pytest.raises(UserError, match=message):
        diffsiam.evaluate(features_of(**changes), **options)


def test_features_without_an_array_are_refused() -> None:
    with pytest.raises(UserError, match="features: no test, test_labels; needed are train, train_labels, test, test_l"):
        diffsiam.evaluate({"train": [[1.0]], "train_labels": [0]})


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (stored(2).astype(np.float32), r"met float32 \(2, 8, 8, 3\), needed are uint8 \(N, 8, 8, 3\)"),
        (stored(2)[:, :4], r"met uint8 \(2, 4, 8, 3\)"),
        (stored(0), r"met uint8 \(0, 8, 8, 3\)"),
        ("gone.png", "image gone.png: cannot be read: missing"),
        ([], "no images"),
    ],
)
def test_pictures_that_are_none_are_refused(encoder: Any, pictures: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        diffsiam.features(encoder, pictures, device="cpu")


def test_what_is_not_trained_is_told_with_what_is(results: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no trained pdae on sprites, seed0.*There are: diffsiam_hier on sprites, seed0"
    ):
        diffsiam.load_representation(results, "sprites", "pdae", device="cpu")
    with pytest.raises(UserError, match=r"config.json: no such file"):
        diffsiam.load_diffusion(tmp_path)
    with pytest.raises(UserError, match=r"config.json: no such file"):
        diffsiam.load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("targets", "segments", "scales", "message"),
    [
        (1, [(0, 2)], [1.0], "met 2 and 1 images"),
        (2, [(0, 9)], [1.0], "no range of this model's 4 segments"),
        (2, [(0, 2)], [1.5], r"scales: met \[1.5\], allowed are 0 to 1"),
    ],
)
def test_an_edit_that_the_model_cannot_make_is_refused(
    trained: api.Representation, targets: int, segments: Any, scales: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        diffsiam.counterfactual(trained, stored(2), stored(targets), segments, scales)


def test_the_callers_threads_are_left_as_they_are(encoder: Any) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        diffsiam.features(encoder, stored(1), device="cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
