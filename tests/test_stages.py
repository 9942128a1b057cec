"""The rows of `diffsiam.stages` are what the commands read: run at a tiny scale, with every read of a leaf noted."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from diffsiam import cli, params, runtime, schema, stages
from diffsiam.evaluation import store
from diffsiam.training import representation
from diffsiam.training.methods import METHODS
from tests.dvc.clones import MICRO, merged
from tests.test_params import leaves
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[1]
TINY = merged(MICRO, {"data": {"image_size": 8}}) | {
    "representation": MICRO["representation"]
    | {
        "optimizer": {"name": "sgd"},
        "decoder_optimizer": {"name": "sgd", "learning_rate": 1e-5},  # it shall not diverge
        "diti": {"stages": [500, 1000], "dims_per_stage": [8, 24]},
    },
    "runtime": MICRO["runtime"] | {"precision": "fp32"},
    "probmask": {"attributes": [{"dataset": "sprites", "name": "Red", "dims": 8}], "steps": 10},
    "disentanglement": {
        "draws": {"variance": 20, "train": 140, "test": 20, "batch": 4},
        "swaps": {"x_T": "inverted", "samples": 8},
    },
    "generation": {
        "steps": 1,
        "pairs": {"count": 1},
        "ranges": [{"dataset": "sprites", "ranges": [[0, 2]]}],
        "manipulation_scales": [-1.0, 1.0],
        "noise_levels": [100],
        "measured": 8,
        "classifier": {"width": 1, "steps": 1},
    },
}
CODES = {  # of the methods that have any
    "segments": 4,
    "codes": tiny.CODES | {"dim": 8, "embedding": "none", "least_signal": 0.0, "weighting": "constant"},
}
# Leaves that are read on the way, for every method or kind of picture alike, and that the results of some do not depend
# on: of trainings, edits of them are tried below.
IDLE = {name: method.unused for name, method in METHODS.items()}
for name in ("untrained", "frozen_dm"):
    IDLE[name] += ("runtime.precision", "runtime.compile", "runtime.graph")
IDLE |= dict.fromkeys(["denoise", "manipulation", "classifier"], ("representation.segments",))
IDLE["disentanglement"] = ("representation.segments",)  # read, but of no section: the rest of it is not of the job


@contextmanager
def noted() -> Iterator[set[str]]:
    """The leaves that are read meanwhile, of the sections that `params.section` hands out; copies of a whole section
    count as no read."""
    read: set[str] = set()
    names: dict[int, str] = {}
    kept: list[Any] = []  # an object that is gone could leave its id to another
    section = params.section

    def name(value: Any, place: str) -> None:
        if isinstance(value, tuple):
            for item in value:
                name(item, place)
        if dataclasses.is_dataclass(value):
            kept.append(value)
            names[id(value)] = place
            for key, part in vars(value).items():
                name(part, f"{place}.{key}")

    def traced(raw: dict[str, Any], cls: type) -> Any:
        found = section(raw, cls)
        name(found, next(key for key, value in params.SECTIONS.items() if value is cls))
        return found

    def get(self: Any, key: str) -> Any:
        if id(self) in names and sys._getframe(1).f_globals["__name__"] != "dataclasses":
            read.add(f"{names[id(self)]}.{key}")
        return object.__getattribute__(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "section", traced)
        for value in list(vars(params).values()):
            if isinstance(value, type) and dataclasses.is_dataclass(value):
                patch.setattr(value, "__getattribute__", get, raising=False)
        yield read


class Commands:
    """The pipeline's commands in a folder."""

    def __init__(self, folder: Path) -> None:
        demo = yaml.safe_load((ROOT / "workflow/presets/demo.yaml").read_text())
        self.folder, self.raw = folder, merged(demo, TINY)
        (folder / "params.yaml").write_text(yaml.safe_dump(self.raw))

    def run(self, *words: str | Path, edit: dict[str, Any] | None = None) -> None:
        edited = ["--params", str(self.folder / "params.yaml"), "--params", json.dumps(edit or {})]
        assert cli.main([*map(str, words), *edited]) == 0

    def train(self, method: str, out: Path, edit: dict[str, Any] | None = None) -> None:
        codes = {"representation": CODES} if METHODS[method].coded else {}
        edit = schema.merge(codes, edit or {})
        places = ["--data", self.folder / "data", "--diffusion", self.folder / "dm", "--out", out]
        rest = ["--seed", "0", "--checkpoint", out / "state.pt"]
        self.run("representation", method, *places, *rest, edit=edit)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def reads(commands: Commands) -> dict[str, set[str]]:
    """What each kind of job reads: by row, trainings of representations by method."""
    at, found = commands.folder, {}

    @contextmanager
    def of(row: str) -> Iterator[None]:
        with noted() as read:
            yield
        found[row] = read

    with of("data"):
        commands.run("data", "sprites", "--out", at / "data")
    dm = ("diffusion", "--data", at / "data", "--checkpoint", at / "dm.pt", "--out")
    with of("pretrain"):
        commands.run(*dm, at / "dm")
    with of("fetch"):
        fetch = {"location": str(at / "dm"), "format": "diffusers", "sha256": None}
        commands.run(*dm, at / "fetched", edit={"diffusion": {"source": "fetch", "fetch": fetch}})
    for method in METHODS:
        with of(method):
            commands.train(method, at / method)
    trained = at / "diffsiam_hier"
    ema = trained / "encoder_ema.safetensors"
    with of("features"):
        commands.run(
            "features", "--encoder", trained / "encoder.safetensors", "--data", at / "data", "--out", at / "z.npz"
        )
    for protocol in ("linear", "fewshot"):
        with of(protocol):
            whose = ["--method", "diffsiam_hier", "--seed", "0", "--out", at / f"{protocol}.json"]
            commands.run(protocol, "--features", at / "z.npz", "--meta", at / "data" / "meta.json", *whose)
    commands.run("features", "--encoder", ema, "--data", at / "data", "--mirror", "--out", at / "ema.npz")
    for protocol in ("attributes", "regression"):
        with of(f"heads_{protocol}"):
            whose = ["--method", "diffsiam_hier", "--seed", "0", "--out", at / f"{protocol}.json"]
            commands.run("heads", protocol, "--features", at / "ema.npz", "--data", at / "data", *whose)
    with of("disentanglement"):
        cells = np.random.default_rng(0).normal(size=(6, 32))
        store.write(at / "cells.npz", cells, np.zeros(6, int), cells[:1], np.zeros(1, int))
        meta = {"dataset": "rooms", "classes": ["all"], "metric": "accuracy", "image_size": 8, "splits": {"val": [0]}}
        meta |= {"counts": {"train": 6, "test": 1}, "grid": {"names": ["a", "b"], "sizes": [2, 3]}}
        runtime.write_json(at / "grid.json", meta)
        whose = ["--method", "diffsiam_hier", "--seed", "0", "--config", trained / "config.json"]
        where = ["--features", at / "cells.npz", "--meta", at / "grid.json", "--out", at / "scores.json"]
        commands.run("disentanglement", *where, *whose)
    for kind in ("neighbours", "embedding", "segments"):
        with of(f"sheet_{kind}"):
            whose = ["--data", at / "data", "--method", "diffsiam_hier", "--features", at / "ema.npz"]
            commands.run("sheet", kind, *whose, "--out", at / f"{kind}.sheet")
    with of("probmask"):
        commands.run("probmask", "--encoder", ema, "--data", at / "data", "--out", at / "probmask")
    networks = ["--data", at / "data", "--diffusion", at / "dm", "--representation", trained]
    networks += ["--probmask", at / "probmask" / "Red_8.safetensors"]
    judge = ["--classifier", at / "classifier.safetensors"]
    for kind, file, rest in (
        ("denoise", "denoise.npz", networks[:4]),
        ("counterfactual", "counterfactual.npz", networks),
        ("manipulation", "manipulation.npz", networks),
        ("classifier", "classifier.safetensors", networks[:2]),
        ("numbers", "numbers.csv", [*networks, *judge]),
    ):
        with of(kind):
            commands.run("generate", kind, *rest, "--out", at / file)
    (at / "grid").mkdir()
    np.save(at / "grid" / "images_train.npy", np.load(at / "data" / "images_train.npy")[:6])
    runtime.write_json(at / "grid" / "meta.json", meta)
    commands.run("generate", "classifier", "--data", at / "grid", "--out", at / "factors.safetensors")
    with of("swaps"):
        where = ["--classifier", at / "factors.safetensors", "--out", at / "swaps.npz"]
        commands.run("generate", "swaps", "--data", at / "grid", *networks[2:6], *where)
    return found


def below(names: tuple[str, ...], raw: dict[str, Any]) -> set[str]:
    return {leaf for leaf in leaves(raw) if any(f"{leaf}.".startswith(f"{name}.") for name in names)}


@pytest.mark.slow
@pytest.mark.parametrize("row", [*(r for r in stages.PARAMS if r not in METHODS), *METHODS])
def test_a_row_is_what_its_command_reads(row: str, reads: dict[str, set[str]], commands: Commands) -> None:
    if row not in reads:
        assert row in {
            "representation",
            "attributes",
            "figure",
            "figure4_2",
            "tables",
            "heads_table",
        }  # no section, or a method's
        return
    declared = below(stages.PARAMS[recorded(row)], commands.raw)
    idle = below((*IDLE.get(row, ()), *stages.UNTRACKED), commands.raw)
    assert reads[row] & leaves(commands.raw) - idle == declared - idle


def recorded(row: str) -> str:
    """The row that the rule of a method, or of anything else, records."""
    return "representation" if row in METHODS and METHODS[row].trained else row


EDITS = {
    "representation.segments": 2,
    "representation.stem": "7x7",
    "representation.zero_init_residual": True,
    "representation.last_relu": False,
    "representation.time_input": "noise_level",
    "representation.loss_space": "noise",
    "representation.ssl_weight": 2.0,
    "representation.diffusion_weight": 2.0,
    "representation.diti": {"stages": [500, 1000], "dims_per_stage": [16, 16]},
    "representation.steps": 2,
    "representation.optimizer": {"learning_rate": 0.5, "weight_decay": 0.5, "momentum": 0.5},
    "representation.fixed_predictor_rate": True,
    "representation.decoder_optimizer": {"learning_rate": 1e-3, "weight_decay": 0.5, "momentum": 0.5},
    "representation.grad_clip": 1e-3,
    "representation.ema_decay": 0.0,
    "representation.flip": 1.0,
    "representation.views": {"flip": 1.0, "crop_scale": [0.9, 1.0]},
    "representation.collapse_below": 1.0,
    "representation.snapshots": 1,
    "runtime.precision": "bf16",
}
CODED_EDITS = {
    "representation.codes.embedding": "learned",
    "representation.codes.reconstruction": "pdae",
    "representation.codes.weight": 5.0,
    "representation.codes.least_signal": 0.9,
    "representation.codes.weighting": "difference",
    "representation.codes.encoder_gradient": "none",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.frozen])
def test_an_edit_of_what_a_method_leaves_idle_changes_no_weight_and_of_what_it_uses_changes_some(
    method: str, reads: dict[str, set[str]], commands: Commands, tmp_path: Path
) -> None:
    def weights(folder: Path) -> list[str]:
        return [runtime.sha256(folder / f"{stem}.safetensors") for stem in METHODS[method].weights]

    edits = EDITS
    if METHODS[method].coded:  # whose number of segments is that of its codes
        edits = {leaf: value for leaf, value in EDITS.items() if leaf != "representation.segments"} | CODED_EDITS
    before, changed = weights(commands.folder / method), set()
    for leaf, value in edits.items():
        edit = functools.reduce(lambda inner, key: {key: inner}, reversed(leaf.split(".")), value)
        commands.train(method, tmp_path / leaf, edit)
        if weights(tmp_path / leaf) != before:
            changed.add(leaf)
    idle = set(IDLE[method]) | {"representation.snapshots"}  # that leaves encoders beside the weights
    idle |= {"representation.last_relu"} if method == "untrained" else set()  # of z, not of any weight
    assert changed == set(edits) - idle


def test_a_job_reads_what_its_rule_does_not_record_as_its_data_set_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    demo = yaml.safe_load((ROOT / "workflow/presets/demo.yaml").read_text())
    overrides = {"rooms": {"representation": CODES}, "photos": {"representation": {"segments": 8}}}
    raw, read = demo | {"overrides": overrides}, {}
    monkeypatch.setattr(representation, "run", lambda name, cfg, *rest, **more: read.setdefault(name, cfg))
    monkeypatch.setenv(params.VARIABLE, json.dumps(raw))
    for method, dataset, segments in (("pdae", "rooms", 4), ("disdiff", "rooms", 4), ("simsiam", "photos", 8)):
        own = json.dumps(stages.share(raw, "representation", dataset, METHODS[method].unused))
        places = ["--data", f"results/data/{dataset}", "--out", str(tmp_path / dataset), "--checkpoint", "c.pt"]
        assert cli.main(["representation", method, "--seed", "0", *places, "--params", own]) == 0
        assert read[method].segments == segments
        assert (read[method].codes is None) == (dataset == "photos")
