"""The schema and the dataclasses say the same; every mistake gets one message and no traceback."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffsiam import params, schema
from diffsiam.data import sources
from diffsiam.errors import UserError
from diffsiam.training.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted((ROOT / "workflow" / "presets").glob("*.yaml"))
SCHEMA = yaml.safe_load(schema.SCHEMA.read_text())
REMOVE = ...  # the key is left out


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "workflow" / "presets" / "demo.yaml").read_text())


def changed(raw: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of ``raw`` with the leaf ``key`` set to ``value``, or removed."""
    out = copy.deepcopy(raw)
    node = out
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    if key == "overrides" and isinstance(value, dict):
        value = node[last] | value  # DisDiff needs those that are there
    if value is REMOVE:
        del node[last]
    else:
        node[last] = value
    return out


def message(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        params.check(raw)
    return str(error.value)


# ---------------------------------------------------------------------------------------- schema and dataclasses
def resolved(rule: dict[str, Any]) -> dict[str, Any]:
    """``rule``, or the definition that it refers to."""
    return SCHEMA["$defs"][rule["$ref"].rsplit("/", 1)[-1]] if "$ref" in rule else rule


def compare(cls: type, rule: dict[str, Any], where: str) -> list[str]:
    """Differences between a dataclass and its part of the schema."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    out = []
    if names != list(rule["properties"]):
        out.append(f"{where}: {names} against {list(rule['properties'])}")
    if rule["additionalProperties"] is not False or sorted(rule["required"]) != sorted(rule["properties"]):
        out.append(f"{where}: a key is optional, or unknown keys are allowed")
    for name in names:
        own, hint = resolved(rule["properties"].get(name, {})), hints[name]
        if dataclasses.is_dataclass(hint):
            out += compare(typing.cast(type, hint), own, f"{where}.{name}")
            continue
        parts = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
        for inner in filter(dataclasses.is_dataclass, parts):
            out += compare(typing.cast(type, inner), own, f"{where}.{name}")
        parts = tuple(dict if dataclasses.is_dataclass(p) else p for p in parts)
        json_names = {
            dict: "object",
            int: "integer",
            float: "number",
            str: "string",
            bool: "boolean",
            type(None): "null",
        }
        expected = {json_names.get(p, "array") for p in parts}
        allowed = own.get("type", None)
        met = {allowed} if isinstance(allowed, str) else set(allowed or [])
        if "enum" in own:
            met = {json_names[type(v)] for v in own["enum"]}
        if met != expected:
            out.append(f"{where}.{name}: {expected} against {met}")
    return out


def test_dataclasses_and_schema_have_the_same_keys_and_types() -> None:
    differences = []
    for name, cls in params.SECTIONS.items():
        differences += compare(cls, SCHEMA["properties"][name], name)
    assert differences == []
    plain = {"methods", "seeds", "pretrain", "transfer", "datasets", "overrides", "by_method", "search"}
    assert set(SCHEMA["properties"]) == plain | set(params.SECTIONS)
    assert sorted(SCHEMA["required"]) == sorted(SCHEMA["properties"])
    assert SCHEMA["additionalProperties"] is False


def test_an_entry_of_datasets_has_the_keys_of_its_row_and_those_that_may_be_absent_have_a_default() -> None:
    rule = SCHEMA["properties"]["datasets"]["additionalProperties"]
    fields = dataclasses.fields(sources.Own)
    assert list(rule["properties"]) == [field.name for field in fields]
    assert rule["required"] == [field.name for field in fields if field.default is dataclasses.MISSING]
    hints = typing.get_type_hints(sources.Own)
    for name in ("layout", "metric"):
        literal = typing.get_args(hints[name])[0] if name == "layout" else hints[name]
        assert rule["properties"][name]["enum"] == list(typing.get_args(literal))


def test_the_schema_knows_the_built_in_data_sets_and_those_with_classes() -> None:
    assert SCHEMA["$defs"]["dataset"]["enum"] == list(sources.DATASETS)
    assert SCHEMA["$defs"]["labelled"]["enum"] == [row.name for row in sources.DATASETS.values() if row.labelled]


def test_the_schema_knows_the_rows_of_methods() -> None:
    assert SCHEMA["properties"]["methods"]["items"]["enum"] == list(METHODS)


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    out: set[str] = set()
    for key, value in tree.items():
        out |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return out


# ------------------------------------------------------------------------------------------------------ presets
def test_the_params_yaml_that_is_committed_is_the_demo_preset_byte_for_byte() -> None:
    """What ships is what is committed: the file in the working tree is the user's to edit."""

    def committed(path: str) -> bytes:
        return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, check=True).stdout

    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git repository: nothing is committed")
    assert committed("params.yaml") == committed("workflow/presets/demo.yaml")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_preset_is_complete_and_valid(preset: Path) -> None:
    raw = yaml.safe_load(preset.read_text())
    params.check(raw)
    for cls in params.SECTIONS.values():
        section = params.section(raw, cls)
        assert (
            json.loads(json.dumps(dataclasses.asdict(section)))
            == raw[next(k for k, v in params.SECTIONS.items() if v is cls)]
        )


def test_there_are_presets() -> None:
    assert {"demo", "cifar-cpu", "thesis"} <= {p.stem for p in PRESETS}


def test_sections_are_typed(raw: dict[str, Any]) -> None:
    raw = changed(raw, "diffusion.learning_rate", 1)
    diffusion = params.section(raw, params.Diffusion)
    assert isinstance(diffusion.learning_rate, float)
    assert diffusion.unet.channels == tuple(raw["diffusion"]["unet"]["channels"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        diffusion.steps = 3  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------------- mistakes
MISTAKES: list[tuple[str, object, list[str]]] = [  # key, value, what the message holds besides the key
    ("diffusion.learning_rat", 1e-4, ["unknown key", "Did you mean learning_rate?", "batch_size"]),
    ("diffusions", {}, ["unknown key", "Did you mean diffusion?"]),
    ("representation.views.flips", 1, ["unknown key", "Did you mean flip?"]),
    ("diffusion.steps", REMOVE, ["missing", "workflow/presets/demo.yaml"]),
    ("fewshot", REMOVE, ["missing"]),
    ("linear.penalty_max", "1.0e5", ['met "1.0e5"', "a decimal point and a sign, as in", "1.0e+5"]),
    ("diffusion.steps", "600", ['met "600"', "integer, at least 1"]),
    ("diffusion.steps", 600.0, ["met 600.0", "integer"]),
    ("diffusion.steps", True, ["met true", "integer"]),
    ("diffusion.steps", 0, ["met 0", "at least 1"]),
    ("diffusion.steps", None, ["met null", "integer"]),
    ("diffusion", None, ["met null", "object"]),
    ("diffusion.learning_rate", "1e-4", ['met "1e-4"', "number", "1.0e-4"]),
    ("linear.penalty_max", "1.0e5", ['met "1.0e5"', "a decimal point and a sign, as in", "1.0e+5"]),
    ("diffusion.steps", "600", ['met "600"', "integer", "take its quotes away", "--configfile"]),
    ("diffusion.learning_rate", 0, ["met 0", "above 0"]),
    ("diffusion.learning_rate", math.nan, ["met NaN", "above 0"]),
    ("representation.diffusion_weight", math.inf, ["met Infinity", "at least 0"]),
    ("diffusion.unet.dropout", 1, ["met 1", "below 1"]),
    ("diffusion.unet.channels", [], ["met []", "at least 1 items"]),
    ("diffusion.unet.channels", [32, 64.0], ["met 64.0", "integer"]),
    ("diffusion.source", "download", ['met "download"', "one of pretrain, fetch"]),
    ("diffusion.fetch.sha256", "abc", ['met "abc"', "0-9a-f"]),
    ("data.image_size", 17, ["met 17", "one of 8, 16, 32"]),
    ("data.root", "", ['met ""', "not empty"]),
    ("data.val_fraction", 1.0, ["met 1.0", "below 1"]),
    ("methods", ["simsiam", "simsiam"], ["no value twice"]),
    ("seeds", [-1], ["met -1", "at least 0"]),
    ("transfer", ["CIFAR"], ['met "CIFAR"', "CIFAR10", "sprites"]),
    ("representation.views.crop_scale", [0.2], ["met [0.2]", "at least 2 items"]),
    ("representation.stem", "5x5", ['met "5x5"', "one of auto, 3x3, 7x7"]),
    ("representation.loss_space", "eps", ['met "eps"', "one of x0, noise"]),
    ("representation.flip", 1.5, ["met 1.5", "at most 1"]),
    ("generation.inversion_steps", 0, ["met 0", "at least 1"]),
    ("representation.segments", 33, ["33", "divisor of 256"]),
    ("representation.diti", {"stages": [1000], "dims_per_stage": None}, ["1000", "Give both"]),
    ("runtime.threads", 0, ["met 0", "at least 1"]),
    ("transfer", ["CelebA"], ['met "CelebA"', "CIFAR10", "sprites"]),
    ("by_method", {"simsiam": {"representation": {"segments": 4}}}, ["simsiam.representation.segments", "unknown key"]),
    ("by_method", {"simsiam": {"representation": {"steps": 0}}}, ["by_method.simsiam.representation.steps: met 0"]),
    ("by_method", {"simsiam": {"linear": {}}}, ["unknown key", "Allowed here: representation"]),
    ("by_method", {"frozen_dm": {}}, ['met "frozen_dm"', "diffsiam_hier"]),
    ("overrides", {"CelebA": {"linear": {}}}, ["unknown key", "data, diffusion, representation"]),
    ("overrides", {"CelebA": {"data": {"image_size": 17}}}, ["CelebA.data.image_size", "met 17"]),
    ("overrides", {"CelebA": {"representation": {"segments": 33}}}, ["33", "divisor of 256"]),
    ("overrides", {"sprites": {"data": {"image_size": 32}}}, ["the tables use sprites"]),
    ("figures.method", "diti", ["diti is not among generation.methods", "pdae, diffsiam_hier"]),
    ("figures.datasets.fig4_2", "CelebA", ["no row in generation.ranges", "sprites"]),
    (
        "probmask.attributes",
        [{"dataset": "sprites", "name": "Red", "dims": d} for d in (16, 8)],
        ["Red of sprites stands there twice, with dims 16 and 8"],
    ),
    ("figures.datasets.fig4_6", "CelebA", ["no row in probmask.attributes", "sprites"]),
    ("pretrain", "birds", ['met "birds"', "CIFAR10", "name in the section datasets"]),
    ("datasets", {"my-birds": {"path": "x"}}, ['met "my-birds"', "letters and digits"]),
    ("datasets", {"DTD": {"path": "x"}}, ["datasets.DTD: DTD is a data set already"]),
    ("datasets", {"cifar10": {"path": "x"}}, ["datasets.cifar10: CIFAR10 is a data set already"]),
    ("datasets", {"a": {"path": "x"}, "A": {"path": "y"}}, ["datasets.A: a is a data set already"]),
    ("datasets", {"birds": {}}, ["datasets.birds.path is missing"]),
    ("datasets", {"birds": {"path": "x", "layout": "folders"}}, ['met "folders"', "one of classes, flat"]),
    ("datasets", {"birds": {"path": "x", "validation": 0}}, ["datasets.birds.validation: met 0", "above 0"]),
    ("datasets", {"birds": {"path": "x", "metrics": 0}}, ["unknown key", "Did you mean metric?"]),
    ("datasets", {"birds": {"path": "x.csv", "layout": "flat"}}, ["layout: a CSV has labels where"]),
]


@pytest.mark.parametrize(("key", "value", "words"), MISTAKES, ids=[f"{k}={v!r}"[:50] for k, v, _ in MISTAKES])
def test_a_mistake_is_named_with_its_key_its_value_and_what_is_allowed(
    raw: dict[str, Any], key: str, value: object, words: list[str]
) -> None:
    text = message(changed(raw, key, value))
    assert len(text.splitlines()) == 1
    named = key if key not in ("transfer", "seeds") else f"{key}.0"
    assert named in text
    for word in words:
        assert word in text, text


def test_an_override_changes_its_own_keys_for_its_own_data_set(raw: dict[str, Any]) -> None:
    raw["overrides"] |= {"CelebA": {"data": {"image_size": 64}, "diffusion": {"unet": {"dropout": 0.0}}}}
    params.check(raw)
    assert params.of(raw, "sprites") == raw
    expected = copy.deepcopy(raw)
    expected["data"]["image_size"], expected["diffusion"]["unet"]["dropout"] = 64, 0.0
    assert params.of(raw, "CelebA") == expected


def test_a_methods_own_settings_stand_over_those_of_the_data_set(raw: dict[str, Any]) -> None:
    raw["overrides"] |= {"CelebA": {"representation": {"steps": 7, "ssl_weight": 2.0}}}
    raw["by_method"] = {"simsiam": {"representation": {"steps": 9, "optimizer": {"learning_rate": 0.5}}}}
    params.check(raw)
    assert params.of(raw, "CelebA")["representation"]["steps"] == 7
    mine = params.of(raw, "CelebA", "simsiam")["representation"]
    assert (mine["steps"], mine["ssl_weight"]) == (9, 2.0)
    assert mine["optimizer"] == raw["representation"]["optimizer"] | {"learning_rate": 0.5}
    assert params.of(raw, "CelebA", "pdae") == params.of(raw, "CelebA")


def test_a_name_of_datasets_stands_wherever_a_built_in_one_does(raw: dict[str, Any]) -> None:
    raw["datasets"] = {
        "birds": {"path": "~/birds", "attributes": "beaks.csv"},
        "Wings2": {"path": "w", "layout": "flat"},
    }
    raw["pretrain"], raw["transfer"] = "Wings2", ["birds", "digits"]
    raw["overrides"] |= {"birds": {"diffusion": {"steps": 7}}}
    raw["figures"]["datasets"] = dict.fromkeys(raw["figures"]["datasets"], "birds")
    raw["probmask"]["attributes"] = [{"dataset": "birds", "name": "Long beak", "dims": 16}]
    raw["generation"]["ranges"][0]["dataset"] = "birds"
    params.check(raw)
    raw["transfer"] = ["Wings2"]
    assert "datasets.Wings2.layout: flat images have no labels, but transfer has Wings2" in message(raw)
    raw["transfer"] = ["fish"]
    assert 'transfer.0: met "fish"' in message(raw)
    assert "birds, Wings2" in message(raw)


def test_two_mistakes_are_two_lines_and_two_missing_keys_are_both_named(raw: dict[str, Any]) -> None:
    text = message(changed(changed(raw, "diffusion.steps", 0), "linear.penalties", 0))
    assert ["diffusion.steps" in line or "linear.penalties" in line for line in text.splitlines()] == [True, True]
    text = message(changed(changed(raw, "diffusion.steps", REMOVE), "diffusion.seed", REMOVE))
    assert len(text.splitlines()) == 1
    assert "diffusion.steps" in text
    assert "diffusion.seed" in text


def test_sources_are_merged_and_later_ones_win(raw: dict[str, Any], tmp_path: Path) -> None:
    first = tmp_path / "a.yaml"
    first.write_text(yaml.safe_dump({"fewshot": {**raw["fewshot"], "episodes": 7, "ways": 3}}))
    merged = params.read(str(first), '{"fewshot": {"episodes": 9}}')
    assert merged["fewshot"]["episodes"] == 9
    assert merged["fewshot"]["ways"] == 3
    assert params.section(merged, params.FewShot).episodes == 9


def test_a_place_is_at_home_and_an_unknown_users_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert params.place("~/birds") == Path("/home/ada/birds")
    assert params.place("~nobody-of-that-name/birds") == Path("~nobody-of-that-name/birds")


def test_select_keeps_the_named_leaves_and_nothing_else(raw: dict[str, Any]) -> None:
    got = params.select(raw, ("fewshot", "runtime.threads"))
    assert got == {"fewshot": raw["fewshot"], "runtime": {"threads": raw["runtime"]["threads"]}}
    got = params.select(raw, ("fewshot", "runtime.threads"), ("fewshot.ways",))
    assert got["fewshot"] == {k: v for k, v in raw["fewshot"].items() if k != "ways"}
    assert "ways" in raw["fewshot"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.yaml", ["nowhere.yaml", "No such file", "--params"]),
        ("{not json", ["not a JSON object"]),
        ("list.yaml", ["a mapping of sections", "list"]),
        ("broken.yaml", ["broken.yaml", "not YAML"]),
        ("folder.yaml", ["folder.yaml", "directory"]),
    ],
)
def test_a_source_that_cannot_be_read_is_named(
    source: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- a\n- b\n")
    Path("broken.yaml").write_text("a: [1\nb: }")
    Path("folder.yaml").mkdir()
    with pytest.raises(UserError) as error:
        params.read(source)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ('{"fewshot": {"episodes": "many"}}', "fewshot.episodes"),
        ("nowhere.yaml", "nowhere.yaml"),
        ("{}", "fewshot.ways"),
    ],
)
def test_the_command_line_ends_with_2_and_one_message(argument: str, word: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffsiam.cli", "fewshot", "--features", "x.npz", "--meta", "m.json"]
    command += ["--method", "simsiam", "--seed", "0", "--out", "o.json", "--params", argument]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("diffsiam fewshot: ")
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
