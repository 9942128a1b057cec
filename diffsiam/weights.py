"""Weights from elsewhere: every tensor that a file holds, by name, and among them those of one network.

Read are safetensors, whole or in shards, and what torch.save writes: a state dict, a checkpoint with one inside, a
whole module. Classes that a file names are never imported, and none of its code runs: see `_Inert`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diffsiam import runtime
from diffsiam.errors import UserError

INDEX = ".index.json"  # how the name of a sharded model's index ends
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}(\.safetensors|\.bin)")
# Of self-supervised trainings, beside the network's own layers: what features do not pass through.
_HEADS = re.compile(r"(projection_head|projector|prototypes|predictor|decoder_\w+|mask_token)(\.|$)")
_STRANGERS = {  # how files begin that stand in the place of weights: what they are, what to do
    b"<": ("a web page", "The address has moved or asks to sign in: fetch the weights themselves."),
    b"version https://git-lfs": ("Git LFS's pointer to the weights", "Run `git lfs pull` where it lies, or fetch it."),
}
_REDUCE = (
    "Where it was made, save the network's own part alone: "
    "`safetensors.torch.save_file(model.state_dict(), 'encoder.safetensors')`."
)


class _Inert:
    """Stands for an object in a checkpoint whose class is not PyTorch's: it keeps the object's state, and does nothing.

    PyTorch's own reader of plain tensors maps the name of every such class to this one, so that a file written beside
    a trainer's settings or a metric of NumPy's can be read without it.
    """

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read(path: Path, title: str) -> dict[str, Tensor]:
    """Every tensor in a file; names within names are joined by dots: ``state_dict.backbone.conv1.weight``.

    Args:
        path: safetensors, a file of torch.save's, or the index of a model in shards of either (``*.index.json``).
        title: what it is called in messages.
    Raises:
        UserError: it is missing, damaged, not of these formats, holds code, or holds no tensor.
    """
    if shard := _SHARD.fullmatch(path.name):
        raise UserError(f"{title}: one part of a model. Name its index, {shard[1]}{shard[2]}{INDEX}, beside it.")
    content = load(path, title)
    try:
        found = dict(tensors(content))
    except RecursionError:
        raise UserError(f"{title}: its names stand within one another without end. Get it again.") from None
    if not found:
        what = f": its keys are {', '.join(map(str, content))[:200]}" if isinstance(content, dict) else ""
        arrays = isinstance(content, dict) and any(isinstance(value, _Inert) for value in content.values())
        raise UserError(
            f"{title}: holds no tensors{what or f', but a {type(content).__name__}'}. "
            f"{'Make tensors of its arrays, `torch.from_numpy`, or name' if arrays else 'Name'} another file."
        )
    return found


def load(path: Path, title: str) -> Any:
    """What a file holds, as `read` but nested as it was saved."""
    _, *shards = files(path, title)
    if shards:
        return {name: tensor for shard in shards for name, tensor in load(shard, str(shard)).items()}
    with open(path, "rb") as f:
        head = f.read(64)
    for start, (what, remedy) in _STRANGERS.items():
        if head.lstrip().startswith(start):
            raise UserError(f"{title}: {what}, not weights. {remedy}")
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # after the length of its header, whatever its name
        return _load_safetensors(path, title)
    return _load_torch(path, title)


def files(path: Path, title: str) -> list[Path]:
    """The file itself, or, of a sharded model's index, the index and every shard that it names."""
    if not path.is_file() or not os.access(path, os.R_OK):
        problem = "is a folder" if path.is_dir() else "may not be read" if path.exists() else "no such file"
        raise UserError(f"{title}: {problem}. Name a file of weights.")
    if not path.name.endswith(INDEX):
        return [path]
    shards = [path.with_name(name) for name in shard_names(path, title)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"{title}: it names {', '.join(missing)}, not found beside it. Bring all {len(shards)} shards.")
    return [path, *shards]


def shard_names(index: Path, title: str) -> list[str]:
    """The files that the index of a sharded model names, sorted; they lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        beside = names and all(Path(name).name == name and not name.endswith(INDEX) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        beside = False
    if not beside:
        raise UserError(f"{title}: no index of a sharded model: `weight_map` must name files beside it. Get it again.")
    return names


def sha256(path: Path, title: str) -> str:
    """Checksum of the file; of a sharded model, of its index and shards one after the other."""
    total = hashlib.sha256()
    for part in files(path, title):
        with open(part, "rb") as f:
            while block := f.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _load_safetensors(path: Path, title: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as e:
        raise UserError(
            f"{title}: not a complete safetensors file ({e}). It cannot be read: get it again, or name another."
        ) from None


def _load_torch(path: Path, title: str) -> Any:
    try:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # written before PyTorch 1.6, where names cannot be listed
            names = []
        with torch.serialization.safe_globals([(_Inert, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        reason = re.search(r"GLOBAL (\S+)|reduce for \w+ function (.+)|but got <class '(.+)'>", str(e))
        what = next((group for group in reason.groups() if group), "") if reason else ""
        if _Inert.__name__ in what:  # one of these is filled as it is made, which it is not here
            what = ", ".join(names)
        if what:
            raise UserError(
                f"{title}: holds objects that only their own code can read ({what[:80]}), and code of a file is never "
                f"run. {_REDUCE}"
            ) from None
        problem = type(e).__name__
    except Exception as e:  # the decoder meets bytes of any kind, and raises as many kinds of errors
        if "TorchScript" in str(e):
            raise UserError(f"{title}: a TorchScript archive: a program, not weights by name. {_REDUCE}") from None
        problem = f"{type(e).__name__}: {str(e).partition(chr(10))[0][:120]}"
    raise UserError(
        f"{title}: cannot be read: neither safetensors nor a file of torch.save's, or cut off ({problem}). Get it "
        "again, or name another."
    )


def tensors(value: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor within nested mappings, lists and whole modules, by dotted name."""
    if isinstance(value, Tensor):
        yield prefix.removesuffix("."), value.detach()
    elif isinstance(value, _Inert):
        own = vars(value)
        saved_not = own.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers", "_modules"):
            inner = own.get(kind)
            if isinstance(inner, Mapping):
                left = saved_not if isinstance(saved_not, set) else ()
                yield from tensors({key: x for key, x in inner.items() if key not in left}, prefix)
    elif isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from tensors(inner, f"{prefix}{key}.")


@dataclasses.dataclass(frozen=True)
class Network:
    """What a file's tensors are to fit.

    Attributes:
        name: what it is called in messages.
        shapes: of its tensors by name; running counts of batches may be absent from a file.
        remedy: what to do where the tensors are not its own; several: where it is in a file more than once.
        spare: modules that it has no use for: a classifier.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    remedy: str
    several: str
    spare: tuple[str, ...] = ()


def part(state: Mapping[str, Tensor], network: Network, title: str, under: str | None = None) -> dict[str, Tensor]:
    """The tensors of one network, under its own names, out of a file that may hold more and put words before them.

    Trainers leave prefixes (``module.``, ``_orig_mod.``, ``backbone.``) and sometimes several copies (a teacher, a
    momentum encoder): what stands before the names is found in the file, and what is taken is said on stderr.

    Args:
        state: of `read`.
        under: the words before the names, where several fit.
    Raises:
        UserError: no part fits, several do, or a value is not finite.
    """
    needed = [name for name in network.shapes if not name.endswith("num_batches_tracked")]
    ends = [(name, f".{name}") for name in needed]
    prefixes = {met.removesuffix(name) for met in state for name, end in ends if f".{met}".endswith(end)} or {""}
    fitting = [p for p in sorted(prefixes) if all(p + name in state for name in needed)]
    there = ", ".join(p.removesuffix(".") or "no word at all" for p in fitting)
    if under is not None:
        fitting = [p for p in fitting if p.removesuffix(".") == under]
        if not fitting:
            raise UserError(f"{title}: no {network.name} under {under}. Words with one under them: {there or 'none'}.")
    if len(fitting) > 1:
        raise UserError(f"{title}: holds {network.name} {len(fitting)} times, under {there}. {network.several}")
    prefix = fitting[0] if fitting else max(prefixes, key=lambda p: sum(p + name in state for name in needed))
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    spare = tuple(f"{module}." for module in network.spare)
    own = {
        name: tensor
        for name, tensor in inside.items()
        if name in network.shapes or not (f"{name}.".startswith(spare) or _HEADS.match(name))
    }
    check_shapes(own, network, title)
    _check_numbers(own, title)
    runtime.check_finite(own, title)
    others = len(state) - len(own)
    if prefix or any(_HEADS.match(name) for name in inside.keys() - own.keys()):
        print(f"{title}: {len(own)} tensors taken from {prefix}*, {others} of other names left out.", file=sys.stderr)
    return own


def _check_numbers(state: Mapping[str, Tensor], title: str) -> None:
    """Refuse tensors whose numbers are not the weights themselves: what a quantised network multiplies, say."""
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        if not plain or tensor.is_complex() or tensor.dtype in (torch.int8, torch.uint8):
            kind = (
                "without numbers (meta)" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
            )
            raise UserError(
                f"{title}: {name} is {kind}, and a network computes with dense weights of floating point. Where it was "
                "made, save the weights from before that was done to them."
            )


def check_shapes(state: Mapping[str, Tensor], network: Network, title: str) -> None:
    """Refuse tensors that are not the network's, with the first of what is missing, left over or of another shape."""
    met = {key: tuple(tensor.shape) for key, tensor in state.items()}
    expected = {k: v for k, v in network.shapes.items() if k in met or not k.endswith("num_batches_tracked")}
    found = {
        "missing": [f"{key} {expected[key]}" for key in expected if key not in met],
        "not expected": [f"{key} {met[key]}" for key in met if key not in expected],
        "of another shape": [
            f"{key} {met[key]}, expected {expected[key]}"
            for key in expected
            if key in met and met[key] != expected[key]
        ],
    }
    problems = [f"{len(keys)} {what}: {'; '.join(keys[:3])}" for what, keys in found.items() if keys]
    if problems:
        raise UserError(
            f"{title}: its tensors are not the {len(expected)} of {network.name}. {'. '.join(problems)}. "
            f"{network.remedy}"
        )
