"""Two CPU processes (gloo) against one, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from diffsiam import params, runtime
from diffsiam.data import prepare
from diffsiam.errors import UserError
from diffsiam.training.parallel import World

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "data": {"image_size": 16},
    "runtime": {"threads": 1, "precision": "fp32", "device": "cpu"},
    "diffusion": {
        "steps": 20,
        "batch_size": 16,
        "unet": {"channels": [8, 16], "norm_groups": 4, "attention_resolutions": [8], "dropout": 0.0},
    },
    "representation": {
        "steps": 20,
        "batch_size": 64,
        "encoder_width": 4,
        "segments": 4,
        # One sum and two halves round differently. Large steps, batch norm over few images and Adam's first steps
        # multiply that; these do not.
        "optimizer": {"learning_rate": 0.0003},
        "decoder_optimizer": {"name": "sgd", "learning_rate": 0.001},
        "diffusion_weight": 1.0,
    },
}


def run(*args: object) -> None:
    """One stage by its command, failing with what it printed."""
    command = [sys.executable, "-m", "diffsiam.cli", *map(str, args), "--params", "params.yaml"]
    environment = {k: v for k, v in os.environ.items() if k != params.VARIABLE}
    done = subprocess.run(
        [*command, "--params", json.dumps(SMALL)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set and a diffusion model trained by one process."""
    top = tmp_path_factory.mktemp("parallel")
    prepare.run("sprites", params.Data("resources", 16, 0.0, 0.2, 0), top / "data")
    run("diffusion", "--data", top / "data", "--out", top / "dm1", "--checkpoint", top / "c")
    return top


def histories_agree(one: Path, two: Path, columns: list[str]) -> None:
    """Both histories hold the same losses to 1e-5."""
    a, b = pd.read_csv(one / "history.csv"), pd.read_csv(two / "history.csv")
    assert len(a) == len(b) == 20
    pd.testing.assert_frame_equal(a[columns], b[columns], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_pretrain_the_diffusion_model_with_the_losses_of_one(folder: Path) -> None:
    run("diffusion", "--data", folder / "data", "--out", folder / "dm2", "--checkpoint", folder / "c", "--processes", 2)
    histories_agree(folder / "dm1", folder / "dm2", ["step", "loss", "grad_norm"])


@pytest.mark.slow
def test_two_processes_train_diffsiam_with_the_losses_of_one_batch_norm_included(folder: Path) -> None:
    for count in (1, 2):
        where = ["--data", folder / "data", "--diffusion", folder / "dm1", "--out", folder / f"hier{count}"]
        rest = ["--seed", 0, "--checkpoint", folder / "c", "--processes", count]
        run("representation", "diffsiam_hier", *where, *rest)
    histories_agree(folder / "hier1", folder / "hier2", ["step", "loss", "ssl", "diffusion"])
    one, two = (runtime.load_weights(folder / f"hier{n}/encoder.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    assert any("running_var" in name for name in one)
    for name, value in one.items():
        assert (value.double() - two[name].double()).abs().max() < 1e-4, name


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size: 10 images cannot be shared evenly by 4 processes"):
        World(0, 4, torch.device("cpu")).rows(10)
