"""The protocols on an encoder from elsewhere: what is computed, what is refused, and what a second call does again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsiam import cli, runtime
from diffsiam.data import prepare
from diffsiam.errors import UserError
from diffsiam.evaluation import features, protocols
from diffsiam.models.encoder import Encoder

DEMO = Path(__file__).resolve().parents[2] / "workflow" / "presets" / "demo.yaml"
QUICK = {
    "linear": {"penalties": 2, "penalty_min": 1000.0, "penalty_max": 1e4, "tolerance": 1e-2},
    "fewshot": {"episodes": 20, "epochs": 3},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save(tmp_path / "encoder", 0)


def save(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    runtime.save_weights(folder / "encoder.safetensors", Encoder(4, 16).state_dict())
    runtime.write_json(folder / "config.json", {"encoder_width": 4, "image_size": 16})
    return folder / "encoder.safetensors"


def evaluate(encoder: Path, out: Path, *data: str, **changes: dict[str, Any]) -> int:
    given = {section: QUICK.get(section, {}) | changes.get(section, {}) for section in QUICK | changes}
    options = ["--params", str(DEMO), "--params", json.dumps(given)]
    return cli.main(["evaluate", "--encoder", str(encoder), "--data", *data, "--out", str(out), *options])


def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed from here on."""
    done: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(features, "extract", noted("extract", features.extract))
    monkeypatch.setattr(protocols, "PROTOCOLS", {k: noted(k, v) for k, v in protocols.PROTOCOLS.items()})
    return done


def test_a_refused_protocol_leaves_the_rest_and_its_reason(encoder, tmp_path, capsys) -> None:
    """Digits have ten classes."""
    out = tmp_path / "out"
    assert evaluate(encoder, out, "digits", fewshot={"ways": 11}) == 0
    accuracy = json.loads((out / "linear" / "digits.json").read_text())["accuracy"]
    printed = capsys.readouterr().out
    assert f"| digits   | {accuracy:.2f} ± " in printed
    assert "Not computed:\n- fewshot of digits: few-shot on digits: 11 classes with 10 support and 15 query" in printed
    assert printed == (out / "summary.md").read_text()
    assert not (out / "fewshot").exists()


def test_where_all_is_refused_the_reasons_are_the_message(encoder, tmp_path, capsys, monkeypatch) -> None:
    def refuse(name: str, *args: object) -> None:
        raise UserError(f"{name}: no room.")

    monkeypatch.setattr(prepare, "run", refuse)
    assert evaluate(encoder, tmp_path / "out", "digits", "photos") == 2
    assert capsys.readouterr().err == "diffsiam evaluate: digits: no room. photos: no room.\n"
    assert not (tmp_path / "out" / "summary.md").exists()


def test_a_data_set_that_cannot_be_prepared_leaves_the_others_and_ends_with_2(
    encoder, tmp_path, capsys, monkeypatch
) -> None:
    real = prepare.run

    def run(name: str, *args: Any) -> None:
        if name == "CIFAR100":
            raise UserError("CIFAR100: fetch it.")
        real(name, *args)

    monkeypatch.setattr(prepare, "run", run)
    assert evaluate(encoder, tmp_path / "out", "CIFAR100", "digits") == 2
    said = capsys.readouterr()
    assert "- data of CIFAR100: CIFAR100: fetch it." in said.out
    assert "\n| digits   |" in said.out
    assert "Avg.     |   " in said.out  # not an average of half of the data sets
    assert said.err.endswith("diffsiam evaluate: CIFAR100: fetch it. The other data sets' results stand.\n")


def test_a_folder_of_images_is_evaluated_under_its_name(encoder, tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    for label in ("dark", "light"):
        (tmp_path / "my birds" / label).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 100, (16, 16, 3)) + 150 * (label == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "my birds" / label / f"{i}.png")
    few = {"ways": 2, "shots": [1], "queries": 1}
    assert evaluate(encoder, tmp_path / "out", str(tmp_path / "my birds"), fewshot=few | QUICK["fewshot"]) == 0
    assert "\n| mybirds  | " in capsys.readouterr().out
    result = runtime.read_json(tmp_path / "out/linear/mybirds.json")
    assert (result["n_train"], result["n_test"]) == (16, 4)
    assert evaluate(encoder, tmp_path / "out", str(tmp_path / "my birds" / "dark")) == 2
    assert "--data dark: no classes to tell apart" in capsys.readouterr().err


def test_a_second_call_makes_again_only_what_differs(encoder, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    done = work(monkeypatch)
    assert evaluate(encoder, out, "digits") == 0
    assert done == ["extract", "extract", "linear", "fewshot"]
    first = {path: path.read_bytes() for path in out.rglob("digits.*")}
    for changes, again in [
        ({}, []),
        ({"fewshot": {"episodes": 30}}, ["fewshot"]),
        ({"fewshot": {"episodes": 30}, "linear": {"penalties": 3}}, ["linear"]),
        ({}, ["linear", "fewshot"]),
        ({"data": {"split_seed": 5}}, ["extract", "extract", "linear", "fewshot"]),
    ]:
        done.clear()
        assert evaluate(encoder, out, "digits", **changes) == 0
        assert done == again, changes
    assert evaluate(encoder, out, "digits") == 0
    assert {path: path.read_bytes() for path in first} == first
    (out / "linear" / "digits.json").unlink()
    done.clear()
    assert evaluate(encoder, out, "digits") == 0
    assert done == ["linear"]


def test_a_call_that_was_stopped_goes_on(encoder, tmp_path, monkeypatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(protocols, "PROTOCOLS", protocols.PROTOCOLS | {"fewshot": stop})
        with pytest.raises(KeyboardInterrupt):
            evaluate(encoder, tmp_path / "out", "digits")
    done = work(monkeypatch)
    assert evaluate(encoder, tmp_path / "out", "digits") == 0
    assert done == ["fewshot"]


def test_a_refused_result_is_not_an_earlier_call_s(encoder, tmp_path) -> None:
    assert evaluate(encoder, tmp_path / "out", "digits") == 0
    assert evaluate(encoder, tmp_path / "out", "digits", fewshot={"ways": 11}) == 0
    assert not (tmp_path / "out" / "fewshot" / "digits.json").exists()


def test_another_encoder_in_the_same_folder_is_refused(encoder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert evaluate(encoder, out, "digits") == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert evaluate(save(tmp_path / "other", 1), out, "digits") == 2
    assert "config.json is of another encoder (tensors " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    moved = save(tmp_path / "moved", 0)
    assert evaluate(moved, out, "digits") == 0


def test_a_folder_of_something_else_is_left_alone(encoder, tmp_path, capsys) -> None:
    before = (encoder.parent / "config.json").read_text()
    assert evaluate(encoder, encoder.parent, "digits") == 2
    assert "config.json is of no evaluation" in capsys.readouterr().err
    assert (encoder.parent / "config.json").read_text() == before


@pytest.mark.parametrize("name", ["1.weight", "variance"])
def test_an_encoder_that_gives_nan_is_refused_before_any_data_is_prepared(name, tmp_path, capsys) -> None:
    """By its weights, or where they are finite by what it computes: the root of a variance below 0."""
    torch.manual_seed(0)
    state = Encoder(4, 16).state_dict()
    key = next(k for k in state if k.endswith("running_var" if name == "variance" else "weight"))
    state[key].fill_(-1.0 if name == "variance" else np.nan)
    runtime.save_weights(tmp_path / "e" / "encoder.safetensors", state)
    runtime.write_json(tmp_path / "e" / "config.json", {"encoder_width": 4, "image_size": 16})
    assert evaluate(tmp_path / "e" / "encoder.safetensors", tmp_path / "out", "digits") == 2
    assert "NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_that_are_not_finite_leave_the_other_data_sets(encoder, tmp_path, capsys, monkeypatch) -> None:
    """An encoder may overflow on some images alone; nothing is kept of them."""
    real = features.extract

    def extract(model: torch.nn.Module, images: np.ndarray, *args: Any) -> np.ndarray:
        z = real(model, images, *args)
        if len(images) == 500:  # the test images of photos
            z[3, 1], z[7, 2] = np.nan, np.inf
        return z

    monkeypatch.setattr(features, "extract", extract)
    assert evaluate(encoder, tmp_path / "out", "photos", "digits") == 2
    assert "photos: the encoder gives NaN or infinity for 2 of 500 test images." in capsys.readouterr().err
    assert [path.stem for path in (tmp_path / "out" / "features").iterdir()] == ["digits"]


@pytest.mark.parametrize("name", ["config.json", "made.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{"])
def test_a_damaged_record_of_an_earlier_call_is_named(encoder, tmp_path, capsys, name, content) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(content)
    assert evaluate(encoder, tmp_path / "out", "digits") == 2
    assert f"{tmp_path / 'out' / name}: cannot be read (" in capsys.readouterr().err
