"""Features of one's own: the split that a data set of that name has, and the command that evaluates them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffsiam import cli, params, runtime
from diffsiam.data import prepare
from diffsiam.evaluation import fewshot, linear, own_features, store
from tests.training.tiny import ROOT

CFG = params.Data("resources", 8, 0.0, 0.2, 0)
FAST = json.dumps({"linear": {"penalties": 3}, "fewshot": {"episodes": 20, "shots": [1]}})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage's own preparation of scikit-learn's digits."""
    out = tmp_path_factory.mktemp("digits")
    prepare.run("digits", CFG, out)
    return out


def pixels_of(digits: Path) -> dict[str, np.ndarray]:
    """Pixels as features, with text for labels."""
    found = {}
    for split in ("train", "test"):
        images = np.load(digits / f"images_{split}.npy")
        found[split] = images.reshape(len(images), -1)[:, ::3].astype(np.float64)
        found[f"{split}_labels"] = np.char.add("digit ", np.load(digits / f"labels_{split}.npy").astype(str))
    return found


def evaluate(features: Path, out: Path, *more: str) -> int:
    demo = str(ROOT / "workflow" / "presets" / "demo.yaml")
    where = ["--features", str(features), "--out", str(out)]
    return cli.main(["evaluate", *where, "--params", demo, "--params", FAST, *more])


def test_validation_images_are_those_of_a_data_set_of_that_name(digits: Path) -> None:
    meta = runtime.read_json(digits / "meta.json")
    found = own_features.feature_set(pixels_of(digits), "digits", "accuracy", CFG)
    assert found.meta["splits"] == meta["splits"]
    assert found.meta["counts"] == meta["counts"]
    assert found.classes == [f"digit {name}" for name in meta["classes"]]
    assert (found.test_labels == np.load(digits / "labels_test.npy")).all()


def test_the_command_gives_the_stages_numbers_for_features_of_that_name(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, theirs, out = pixels_of(digits), tmp_path / "stage.npz", tmp_path / "out"
    np.savez(tmp_path / "digits.npz", **mine)
    codes = [np.load(digits / f"labels_{split}.npy") for split in ("train", "test")]
    store.write(theirs, mine["train"], codes[0], mine["test"], codes[1])
    assert evaluate(tmp_path / "digits.npz", out) == 0
    printed = capsys.readouterr().out
    assert "**digits.npz**" in printed
    assert printed == (out / "summary.md").read_text()
    raw = params.read(str(ROOT / "workflow" / "presets" / "demo.yaml"), FAST)
    for protocol, stage, cls in (("linear", linear, params.Linear), ("fewshot", fewshot, params.FewShot)):
        where = {"method": "digits.npz", "seed": 0}
        stage.run(theirs, digits / "meta.json", params.section(raw, cls), tmp_path / f"{protocol}.json", **where)
        expected, got = (
            runtime.read_json(at / f) for at, f in ((tmp_path, f"{protocol}.json"), (out / protocol, "digits.json"))
        )
        expected.pop("per_class", None), got.pop("per_class", None)  # the names of classes
        assert got == expected
    assert runtime.read_json(out / "config.json")["tensors"] == runtime.sha256(tmp_path / "digits.npz")


def test_features_of_another_encoder_want_a_folder_of_their_own(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    runtime.write_json(out / "config.json", {"encoder": "torchvision:resnet18", "tensors": "0" * 64})
    np.savez(tmp_path / "other.npz", **pixels_of(digits))
    assert evaluate(tmp_path / "other.npz", out) == 2
    assert "is of another encoder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["config.json"]


def test_what_a_protocol_refuses_leaves_the_other(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = pixels_of(digits)
    for split in ("train", "test"):
        keep = few[f"{split}_labels"] < "digit 3"
        few[split], few[f"{split}_labels"] = few[split][keep], few[f"{split}_labels"][keep]
    np.savez(tmp_path / "three.npz", **few)
    assert evaluate(tmp_path / "three.npz", tmp_path / "out") == 0
    assert "Not computed:\n- fewshot of three: few-shot on three: 5 classes with" in capsys.readouterr().out
    assert (tmp_path / "out" / "linear" / "three.json").exists()
    assert not (tmp_path / "out" / "fewshot").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--features", "f.npz", "--data", "digits", "--image-size", "32"], "--data, --image-size: for --encoder, and"),
        (["--features", "f.npz", "--stem", "cifar"], "--stem: for --encoder, and --features was given"),
        (["--encoder", "e", "--data", "digits", "--metric", "accuracy"], "--metric: for --features, and --encoder was"),
    ],
)
def test_options_of_the_other_source_are_refused_and_not_passed_over(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *options, "--out", str(tmp_path / "out"), "--params", "demo"]) == 2
    assert said in capsys.readouterr().err


def test_an_encoder_without_data_sets_is_asked_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--encoder", "torchvision:resnet18", "--out", str(tmp_path), "--params", "demo"]) == 2
    assert "--data: an encoder is evaluated on data sets" in capsys.readouterr().err
