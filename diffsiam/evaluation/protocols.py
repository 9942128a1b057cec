"""The tables' protocols on any frozen encoder, data set by data set; a second call goes on where the first ended."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffsiam import digest, params, runtime
from diffsiam.data import own, prepare, sources
from diffsiam.errors import UserError
from diffsiam.evaluation import external, features, fewshot, linear, own_features, store

PROTOCOLS: dict[str, Callable[..., None]] = {"linear": linear.run, "fewshot": fewshot.run}
EVALUATE: dict[str, Callable[..., dict[str, Any]]] = {"linear": linear.evaluate, "fewshot": fewshot.evaluate}
MADE = "made.json"  # result -> digest of all that it was made from


@dataclasses.dataclass(frozen=True)
class Settings:
    """The sections of params.yaml that the protocols read; ``data.image_size`` gives way to the encoder's."""

    data: params.Data
    features: params.Features
    linear: params.Linear
    fewshot: params.FewShot
    runtime: params.Runtime


def run(
    encoder: str, datasets: Sequence[str], cfg: Settings, out: Path, *, weights: str | None, image_size: int | None,
    options: external.Options, seed: int, entries: sources.Entries | None = None,
) -> dict[tuple[str, str], str]:  # fmt: skip
    """Evaluate an encoder on data sets: data/, features/, linear/ and fewshot/ under ``out``, and config.json.

    What an earlier call left is kept where nothing that it was made from has changed: encoder, images, parameters, code
    and versions.

    Args:
        encoder: as ``weights``, ``image_size`` and ``options``, see `external.load`.
        datasets: names of labelled data sets.
        cfg: the protocols' parameters.
        out: folder of everything that is written.
        weights: see ``encoder``.
        image_size: see ``encoder``.
        options: see ``encoder``.
        seed: for the record.
        entries: section `datasets` of params.yaml, where some of ``datasets`` are one's own.
    Returns:
        Why, for each (data set, protocol) that was refused; (data set, "data") for one without features.
    Raises:
        UserError: an unknown name, a data set without classes, an encoder that cannot be used, or ``out`` holds the
            results of another one.
    """
    if not datasets:
        raise UserError("--data: an encoder is evaluated on data sets. Name at least one.")
    own.refuse_unlabelled("--data", [sources.get(name, entries) for name in datasets])
    found = external.load(encoder, weights, image_size, options)
    dim = external.probe(encoder, found)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, image_size=found.image_size))
    identity = {
        "encoder": encoder if ":" in encoder else None,  # one trained here is known by its tensors
        "image_size": found.image_size,
        **{"mean": found.mean, "std": found.std},
        "tensors": _checksum(found.model),
    }
    facts = {"encoder": encoder, "weights": found.weights, "sha256": found.sha256, "part": options.part}
    _claim(out, identity | facts | {"stem": options.stem, "dim": dim, "seed": seed}, identity, cfg)
    device = runtime.select_device(cfg.runtime)
    model = found.model.to(device).to(memory_format=torch.channels_last)
    made = _Made(out, [identity, runtime.provenance()["versions"]])
    refused: dict[tuple[str, str], str] = {}
    for name in dict.fromkeys(datasets):
        data, stored = out / "data" / name, out / "features" / f"{name}.npz"
        try:
            prepare.run(name, cfg.data, data, None, entries)
            meta = runtime.read_json(data / "meta.json")
            images = {key: meta[key] for key in ("sha256", "splits", "classes", "metric")}
            made.make(stored, ["features", images], functools.partial(_extract, model, data, stored, cfg, device))
        except UserError as e:
            refused[name, "data"] = str(e)
            continue
        for protocol, evaluate in PROTOCOLS.items():
            result, section = out / protocol / f"{name}.json", vars(cfg)[protocol]
            where = {"method": encoder, "seed": seed}
            depends = [protocol, images, dataclasses.asdict(section), where]
            try:
                made.make(
                    result, depends, functools.partial(evaluate, stored, data / "meta.json", section, result, **where)
                )
            except UserError as e:
                refused[name, protocol] = str(e)
    return refused


def run_features(
    path: Path, cfg: Settings, out: Path, *, metric: str, seed: int
) -> tuple[list[str], dict[tuple[str, str], str]]:
    """As `run`, on features of one's own: linear/ and fewshot/ under ``out``, and config.json.

    Args:
        path: an .npz file, see `own_features.feature_set`; the data set is named after it.
        metric: see ``path``.
    Returns:
        The data set's name, alone in a list, and what was refused.
    """
    name = path.stem
    data = own_features.feature_set(path, name, metric, cfg.data)
    identity = {"tensors": runtime.sha256(path)}
    _claim(out, identity | {"encoder": path.name, "dim": data.train.shape[1], "seed": seed}, identity, cfg)
    refused: dict[tuple[str, str], str] = {}
    for protocol, evaluate in EVALUATE.items():
        result = out / protocol / f"{name}.json"
        try:
            store.write_result(result, evaluate(data, vars(cfg)[protocol], method=path.name, seed=seed))
        except UserError as e:
            result.unlink(missing_ok=True)
            refused[name, protocol] = str(e)
    return [name], refused


class _Made:
    """What the files under ``out`` were made from, for the next call."""

    def __init__(self, out: Path, common: Any) -> None:
        self.out, self.common = out, common
        self.known: dict[str, str] = _earlier(out / MADE) or {}

    def make(self, file: Path, depends: list[Any], run: Callable[[], None]) -> None:
        """Run ``run``, which writes ``file``, unless the file is there and was made from the same; where it fails, no
        earlier file is left in its place. The first of ``depends`` names the stage, whose code counts too."""
        whole = json.dumps([self.common, depends, digest.digest(depends[0])], sort_keys=True)
        key, value = file.relative_to(self.out).as_posix(), hashlib.sha256(whole.encode()).hexdigest()
        if file.exists() and self.known.get(key) == value:
            return
        file.unlink(missing_ok=True)
        run()
        self.known[key] = value
        runtime.write_json(self.out / MADE, self.known)


def _claim(out: Path, facts: dict[str, Any], identity: dict[str, Any], cfg: Settings) -> None:
    """Write config.json, unless ``out`` is another encoder's."""
    path = out / "config.json"
    same = json.loads(json.dumps(identity))  # as it is read back
    earlier = _earlier(path) or same | {"encoder": facts["encoder"]}
    other = [key for key, value in same.items() if value is not None and earlier.get(key, value) != value]
    if other or "encoder" not in earlier:
        differences = "; ".join(f"{key} {earlier[key]}, not {same[key]}" for key in other)
        what = f"of another encoder ({differences})" if other else "of no evaluation"
        raise UserError(
            f"--out {out}: its config.json is {what}. Give each encoder a folder of its own, or delete that one."
        )
    settings = dataclasses.asdict(cfg)
    runtime.write_json(path, facts | {"params": settings, "collected": runtime.provenance()})


def _earlier(path: Path) -> dict[str, Any] | None:
    """What an earlier call wrote there; None where none did."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        problem = "" if isinstance(value, dict) else f"it holds a {type(value).__name__}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        problem = str(e)
    if problem:
        raise UserError(f"{path}: cannot be read ({problem}). Delete it: what it tells of is then made again.")
    return value


def _checksum(model: nn.Module) -> str:
    """Of every tensor with its name: the same for the same weights in whatever file."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _extract(model: nn.Module, data: Path, out: Path, cfg: Settings, device: torch.device) -> None:
    arrays: list[np.ndarray] = []
    for split in ("train", "test"):
        images = runtime.read_array(data / f"images_{split}.npy")
        arrays += [features.extract(model, images, cfg.features.batch_size, device)]
        bad = int((~np.isfinite(arrays[-1]).all(axis=1)).sum())
        if bad:  # here and not where they are read: to extract them anew would not help
            raise UserError(
                f"{data.name}: the encoder gives NaN or infinity for {bad} of {len(images)} {split} images."
            )
        arrays += [runtime.read_array(data / f"labels_{split}.npy")]
    store.write(out, *arrays)
