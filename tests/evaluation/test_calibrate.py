"""The protocol of ssl-transfer to the letter: what that code gave on planted images, and its loop written out."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchvision import models
from torchvision.transforms.v2 import functional

from diffsiam import params
from diffsiam.data import images, readers
from diffsiam.evaluation import linear

ROOT = Path(__file__).resolve().parents[2]
SIDE, CLASSES, TRAIN, TEST = 32, 5, 60, 26
# Of that code's LinearTester, run beside ours on `plant`, 12 penalties from 1e-6 to 1e5. Fits that are cut off depend
# on the order of the images, which that code shuffles: an image of the 130 may fall on the other side.
THEIRS = {"C": 1.0, "accuracy": 63.85}
IMAGE = 100 / 130


def plant(top: Path) -> Path:
    """Class folders under ``top``/CIFAR10 and a ResNet-18; where its weights are."""
    rng = np.random.default_rng(0)
    colours = rng.integers(90, 165, (CLASSES, 3))
    for part, count in (("train", TRAIN), ("test", TEST)):
        for c, colour in enumerate(colours):
            folder = top / "CIFAR10" / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(count):
                # A third of the train images is wrong, so that a penalty in the middle is the best.
                shown = colours[rng.integers(CLASSES)] if part == "train" and i % 3 == 0 else colour
                noisy = (shown + rng.normal(0, 9, 3) + rng.normal(0, 40, (SIDE, SIDE, 3))).clip(0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i:02}.png")
    torch.manual_seed(0)
    torch.save(models.resnet18(weights=None).state_dict(), top / "resnet18.pth")
    return top / "resnet18.pth"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("calibrate")
    plant(top)
    return top


def calibrate(planted: Path, accuracy: float) -> subprocess.CompletedProcess[str]:
    reference = planted / "reference.csv"
    row = {"name": "planted", "encoder": "torchvision:resnet18", "weights": str(planted / "resnet18.pth")}
    row |= {"image_size": SIDE, "data": "CIFAR10", "C": THEIRS["C"], "accuracy": accuracy, "within": 1.05 * IMAGE}
    with open(reference, "w", newline="") as f:
        writer = csv.DictWriter(f, row)
        writer.writeheader()
        writer.writerow(row)
    here = {"data": {"root": str(planted)}, "linear": {"penalties": 12}, "fewshot": {"episodes": 2, "epochs": 1}}
    here |= {"runtime": {"device": "cpu", "threads": 1}}
    words = ["workflow/scripts/calibrate.py", "--reference", str(reference), "--out", str(planted / "out")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, *words, "--params", json.dumps(here)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_calibration_gives_what_that_code_gave_and_fails_where_a_number_is_another(planted: Path) -> None:
    done = calibrate(planted, THEIRS["accuracy"])
    assert done.returncode == 0, done.stderr
    found = json.loads((planted / "out/planted/linear/CIFAR10.json").read_text())
    assert abs(found["accuracy"] - THEIRS["accuracy"]) < 1.05 * IMAGE
    assert found["l2"] == pytest.approx(1 / THEIRS["C"])
    assert "| planted | CIFAR10 |  1.000 |       1.0 |" in done.stdout
    done = calibrate(planted, THEIRS["accuracy"] + 3 * IMAGE)
    assert done.returncode == 1
    assert "1 of 1 further away than allowed" in done.stderr


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # that is the cap
@pytest.mark.parametrize("classes", [2, 4])
def test_the_capped_solver_is_scikit_learns_loop_from_the_smallest_penalty_up(classes: int) -> None:
    rng = np.random.default_rng(classes)
    y = rng.permutation(np.arange(300) % classes)
    x = (rng.normal(size=(300, 20)) + 0.7 * np.eye(20)[y]).astype(np.float32)
    validation, test = np.arange(0, 200, 4), np.arange(200, 300)
    fit = np.setdiff1d(np.arange(200), validation)
    model, best, chosen, curve = LogisticRegression(warm_start=True), 0.0, 0.0, []
    for penalty in np.geomspace(1e-6, 1e5, 9):
        model.set_params(C=1 / penalty).fit(x[fit], y[fit])
        curve.append(100 * model.score(x[validation], y[validation]))
        if curve[-1] > best:
            best, chosen = curve[-1], penalty
    model.set_params(C=1 / chosen).fit(x[:200], y[:200])
    cfg = params.Linear(9, 1e-6, 1e5, False, 1e-5, "capped")
    choice, final, predicted = linear.accuracy(x[:200], y[:200], validation, x[test], classes, cfg, "accuracy")
    assert [entry["accuracy"] for entry in choice.curve] == pytest.approx(curve)
    assert final.penalty == pytest.approx(chosen)
    assert np.array_equal(predicted, model.predict(x[test]))


def test_the_uniform_draw_is_that_codes_list_of_shuffled_indices() -> None:
    indices = list(range(1003))
    np.random.RandomState(0).shuffle(indices)
    expected = sorted(indices[: int(np.floor(0.2 * 1003))])
    assert readers.validation(np.zeros(1003, int), 0.2, "uniform", 0, "CIFAR10").tolist() == expected


@pytest.mark.parametrize("size", [(40, 30), (32, 32), (9, 50)])
def test_few_shot_images_are_torchvisions_resize_of_both_sides_and_central_crop(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = functional.center_crop(functional.resize(image, [36, 36]), [SIDE, SIDE])
    assert np.array_equal(np.asarray(images.enlarge(image, SIDE)), np.asarray(expected))
