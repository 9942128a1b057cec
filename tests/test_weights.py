"""Files of weights as other trainers leave them, and everything that is none."""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from diffsiam import weights
from diffsiam.errors import UserError


class Settings:
    """Of a library that is not installed where the file is read."""

    def __init__(self) -> None:
        self.rate = np.float32(0.1)


class Payload:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].register_buffer("scratch", torch.zeros(7), persistent=False)
    return model


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network().state_dict().items()}


SHAPES = {name: tuple(tensor.shape) for name, tensor in network().state_dict().items()}
WANTED = weights.Network("net", SHAPES, "Name another.", "Choose one with --part.", ("1.head", "2"))


def taken(path: Path, under: str | None = None) -> dict[str, torch.Tensor]:
    return weights.part(weights.read(path, str(path)), WANTED, str(path), under)


def assert_is_the_network(found: dict[str, torch.Tensor]) -> None:
    expected = network().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


CHECKPOINTS: dict[str, tuple[Any, str]] = {  # what torch.save wrote: what stands before the names
    "plain": (prefixed(""), ""),
    "DDP": (prefixed("module."), "module."),
    "compiled": (prefixed("_orig_mod."), "_orig_mod."),
    "DDP of compiled": (prefixed("module._orig_mod."), "module._orig_mod."),
    "an own trainer's": ({"epoch": 3, "net": prefixed("trunk."), "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
                         "net.trunk."),
    "Lightning's": ({"state_dict": prefixed("backbone."), "hyper_parameters": argparse.Namespace(rate=0.1)},
                    "state_dict.backbone."),
    "with a head beside it": (prefixed("encoder.") | {"projector.0.weight": torch.ones(3)}, "encoder."),
    "with its classifier": (prefixed("") | {"1.head.weight": torch.ones(3), "2.bias": torch.ones(3)}, ""),
    "with NumPy's numbers": ({"state_dict": prefixed(""), "best": np.float64(71.2), "all": np.ones(3)}, "state_dict."),
    "with settings of an own class": ({"model": prefixed(""), "settings": Settings()}, "model."),
    "with the head of its training": (prefixed("module.") | {"module.projection_head.0.weight": torch.ones(3),
                                                             "module.mask_token": torch.ones(3)}, "module."),
    "in a tuple": ((7, prefixed("")), "1."),
    "a whole model": (network(), ""),
    "a whole model in DataParallel": (nn.DataParallel(network()), "module."),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_gives_the_network_inside_and_says_what_it_took(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, prefix = CHECKPOINTS[name]
    torch.save(content, tmp_path / "c.pth")
    assert_is_the_network(taken(tmp_path / "c.pth"))
    said = capsys.readouterr().err
    assert f"{len(SHAPES)} tensors taken from {prefix}*" in said if prefix else said == ""


def test_the_format_is_told_by_content(tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("module."), tmp_path / "w.bin")
    torch.save(prefixed(""), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_is_the_network(taken(tmp_path / "w.bin"))
    assert_is_the_network(taken(tmp_path / "old.pth"))


def test_counts_of_batches_may_be_absent(tmp_path: Path) -> None:
    """Files from before PyTorch 0.4.1."""
    state = {name: tensor for name, tensor in prefixed("").items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    assert taken(tmp_path / "w.pth").keys() == state.keys()


def test_of_two_networks_in_a_file_one_must_be_named(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in prefixed("backbone.").items()}
    torch.save({"student": other, "teacher": prefixed("backbone."), "epoch": 1}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"net 2 times, under student.backbone, teacher.backbone. Choose .* --part"):
        taken(tmp_path / "w.pth")
    assert_is_the_network(taken(tmp_path / "w.pth", "teacher.backbone"))
    with pytest.raises(UserError, match=r"no net under ema. .*: student.backbone, teacher.backbone"):
        taken(tmp_path / "w.pth", "ema")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0.weight": None}, r"1 missing: 0.weight \(4, 3, 3, 3\)"),
        ({"1.squeeze.weight": torch.ones(2)}, r"1 not expected: 1.squeeze.weight \(2,\)"),
        ({"0.weight": torch.ones(4, 3, 1, 1)}, r"0.weight \(4, 3, 1, 1\), expected \(4, 3, 3, 3\)"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_of_another_network_are_named(tmp_path: Path, changes: dict, message: str, prefix: str) -> None:
    state = prefixed("") | changes
    state = {f"{prefix}{name}": tensor for name, tensor in state.items() if tensor is not None}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"its tensors are not the \d of net. .*{message}.*Name another"):
        taken(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in prefixed("module.").items()}
    torch.save(state, tmp_path / "w.pth")
    taken(tmp_path / "w.pth")
    state["module.1.running_var"][2] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: 1.running_var holds NaN or infinity in 1 of 4 numbers"):
        taken(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda weight: (100 * weight).to(torch.int8), "int8, strided"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "qint8, strided"),
        (lambda weight: weight.to(torch.complex64), "complex64, strided"),
        (lambda weight: weight.to_sparse(), "float32, sparse_coo"),
        (lambda weight: weight.to("meta"), r"without numbers \(meta\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_the_weights_themselves_are_refused(tmp_path: Path, change: Any, kind: str) -> None:
    state = prefixed("")
    torch.save(state | {"0.weight": change(state["0.weight"])}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w.pth: 0.weight is {kind}, .* save the weights from before that"):
        taken(tmp_path / "w.pth")


# ------------------------------------------------------------------------------------------- what is no weights
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("call", [(Path.touch, Path), (os.system, "touch {}".format)], ids=["pathlib", "os"])
def test_nothing_in_a_file_is_run(tmp_path: Path, legacy: bool, call: tuple) -> None:
    function, argument = call
    content = {"0.weight": Payload(function, argument(tmp_path / "ran"))}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"code of a file is never run. Where it was made, save the network's own part"):
        weights.read(tmp_path / "w.pth", "w.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "ran").exists(), "the file of this test is harmless: it proves nothing"


def _torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


STRANGERS: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page, not weights"),
    "web page after blanks": (b"\n\n  <html>", "a web page, not weights"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS's pointer"),
    "nothing": (b"", "cannot be read"),
    "five bytes": (b"hello", "cannot be read"),
    "JSON": (b'{"a": 1}', "cannot be read"),
    "an array": (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "cannot be read"),
    "a plain pickle": (pickle.dumps({"0.weight": np.ones(3)}, protocol=2), "code of a file is never run"),
    "TorchScript": (_torchscript, "a TorchScript archive"),
    "numbers": (lambda path: torch.save({"epoch": 3, "loss": 0.1}, path), "holds no tensors: its keys are epoch, loss"),
    "a history": (
        lambda path: torch.save({"w": prefixed(""), "losses": collections.deque([1])}, path),
        "can read (collections.deque), and code",
    ),
    "NumPy's arrays": (lambda path: torch.save({"0.weight": np.ones(3)}, path), "Make tensors of its arrays"),
    "a list": (lambda path: torch.save([1, 2], path), "holds no tensors, but a list"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_weights_is_called_what_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    content, message = STRANGERS[name]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    with pytest.raises(UserError) as error:
        weights.read(path, str(path))
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert message in text if suffix == ".pth" or "not weights" in text or "LFS" in text else "cannot be read" in text
    assert len(text) < 400
    assert "weights_only" not in text  # PyTorch's own advice: to load the pickle


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    for path, word in ((tmp_path, "is a folder"), (tmp_path / "w.pth", "no such file")):
        with pytest.raises(UserError, match=word):
            weights.read(path, str(path))


def test_names_within_one_another_without_end_are_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.ones(1)}
    content["b"] = {"c": content}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="without end"):
        weights.read(tmp_path / "w.pth", "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_a_message_or_tensors(form: str, tmp_path: Path) -> None:
    """Cut, and with bytes changed, at random places: most are noticed, none is a traceback."""
    path = tmp_path / "w"
    if form == "safetensors":
        safetensors.torch.save_file(prefixed(""), path)
    else:
        torch.save({"s": prefixed(""), "n": Settings()} if form == "zip" else prefixed(""), path,
                   _use_new_zipfile_serialization=form == "zip")  # fmt: skip
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(150):
        data = bytearray(whole)
        if trial % 2:
            data = data[: rng.integers(len(data))]
        else:
            for place in rng.integers(len(data), size=3):
                data[place] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            weights.read(path, "w")
        except UserError:
            refused += 1
    assert refused > 75


# ------------------------------------------------------------------------------------------------------- shards
@pytest.fixture(params=["safetensors", "bin"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for i, (name, tensor) in enumerate(prefixed("").items()):
        parts[i % 2][name] = tensor
    names = [f"model-0000{i}-of-00002.{request.param}" for i in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        (safetensors.torch.save_file if request.param == "safetensors" else torch.save)(part, tmp_path / name)
    path = tmp_path / f"model.{request.param}.index.json"
    path.write_text(json.dumps({"weight_map": {k: n for n, part in zip(names, parts, strict=True) for k in part}}))
    return path


def test_shards_give_the_whole_network(index: Path) -> None:
    assert_is_the_network(taken(index))
    files = [index, *sorted(index.parent.glob("*-of-00002.*"))]
    assert weights.files(index, "") == files
    assert weights.sha256(index, "") == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_one_shard_is_told_from_the_whole(index: Path) -> None:
    first, second = sorted(index.parent.glob("*-of-00002.*"))
    with pytest.raises(UserError, match=rf"one part of a model. Name its index, {index.name}"):
        weights.read(first, "w")
    second.unlink()
    with pytest.raises(UserError, match=rf"it names {second.name}, not found beside it"):
        weights.read(index, "w")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../secret.safetensors"}}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": "model.safetensors.index.json"}}'],
)  # fmt: skip
def test_an_index_names_files_beside_it_or_is_refused(index: Path, text: str) -> None:
    index.write_text(text)
    with pytest.raises(UserError, match="no index of a sharded model"):
        weights.read(index, "w")
