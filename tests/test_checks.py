"""Contradictions are refused before anything is planned, and by the same measure as by the stage that meets them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from diffsiam import checks, params, sections
from diffsiam.data import sources
from diffsiam.diffusion import frozen, schedule
from diffsiam.errors import UserError
from diffsiam.evaluation import fewshot
from diffsiam.models import segments
from diffsiam.models.unet import DiffusionModel
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = yaml.safe_load((ROOT / "workflow" / "presets" / "demo.yaml").read_text())
# The demo without what the overrides of a data set ask for: they are replaced here.
DEMO = SHIPPED | {"overrides": {}, "disentanglement": SHIPPED["disentanglement"] | {"methods": ["untrained", "pdae"]}}
NOTE = "Dark background"


def demo(**changes: Any) -> dict[str, Any]:
    """The demo's parameters with the leaves ``section__key=value``."""
    raw = copy.deepcopy(DEMO)
    for name, value in changes.items():
        node: Any = raw
        *parents, last = name.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return raw


def attribute(dataset: str = "sprites", name: str = NOTE, dims: int = 16) -> list[dict[str, Any]]:
    """The demo's rows, the last of them replaced."""
    return [*DEMO["probmask"]["attributes"][:3], {"dataset": dataset, "name": name, "dims": dims}]


def spans(*ranges: list[int], dataset: str = "sprites") -> list[dict[str, Any]]:
    own = [[0, 4], [4, 8], [12, 14]]
    rows = [{"dataset": "sprites", "ranges": own + (list(ranges) if dataset == "sprites" else [])}]
    return rows + ([{"dataset": dataset, "ranges": list(ranges)}] if dataset != "sprites" else [])


def overridden(**sections: Any) -> dict[str, Any]:
    return {"CelebA": sections}


def tried(leaf: str, value: Any, method: str = "simsiam") -> dict[str, Any]:
    return {"method": method, "settings": {leaf: [value]}}


CODES = tiny.CODES | {"dim": 64}


CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"representation__segments": 33}, ["representation.segments: 33", "divisor of 256"]),
    ({"representation__segments": 1000}, ["representation.segments: met 1000", "at most 999"]),
    ({"representation__snapshots": 101}, ["representation.snapshots: met 101", "100 of representation.steps"]),
    ({"representation__views__crop_scale": [0.9, 0.2]}, ["representation.views.crop_scale: met [0.9, 0.2]"]),
    ({"representation__diti": {"stages": [1000], "dims_per_stage": None}}, ["representation.diti", "Give both"]),
    (
        {"representation__diti": {"stages": [500, 1000], "dims_per_stage": [100, 100]}},
        ["representation.diti", "add up to 200", "d = 256"],
    ),
    ({"representation__diti": {"stages": [500, 900], "dims_per_stage": [128, 128]}}, ["rise to 1000"]),
    ({"representation__diti": {"stages": [600, 500, 1000], "dims_per_stage": [56, 100, 100]}}, ["rise to 1000"]),
    ({"representation__diti": {"stages": [1, 2, 1000], "dims_per_stage": [56, 100, 100]}}, ["hold [1, 0, 31]"]),
    ({"heads__attributes_on": ["digits"]}, ["heads.attributes_on: digits has no attributes", "CelebA, sprites"]),
    ({"heads__regression_on": ["CelebA"]}, ["CelebA has no continuous labels", "LFW, sprites"]),
    (
        {"heads__regression_on": ["LFW"], "overrides": {"LFW": {"data": {"image_size": 64}}}},
        ["heads.regression_on: images of LFW are 64x64, those of sprites", "16x16"],
    ),
    ({"representation__codes": CODES}, ["representation.segments: met 32 with 4 codes", "set segments to 4"]),
    ({"methods": ["pdae", "disdiff"]}, ["methods: disdiff needs representation.codes, which is null on sprites"]),
    (
        {"representation__codes": CODES | {"count": 128}, "representation__segments": 128},
        ["representation.codes.count: met 128", "at most 64", "learned"],
    ),
    (
        {"data__image_size": 128, "representation__codes": CODES | {"count": 32, "dim": 8}},
        ["data.image_size: met 128 on sprites", "8, 16, 32, 64"],
    ),
    (
        {"overrides": overridden(representation={"segments": 4, "codes": {"count": 4, "dim": 2}})},
        ["overrides.CelebA: representation.codes", "embedding, reconstruction, weight"],
    ),
    (
        {"representation__optimizer": SHIPPED["representation"]["optimizer"] | {"warmup": 100}},
        ["representation.optimizer.warmup: met 100 with 100", "Choose fewer"],
    ),
    (
        {"search__grid": [tried("decoder_optimizer.warmup", 200, "pdae")]},
        ["search.grid: pdae, decoder_optimizer.warmup=200: representation.decoder_optimizer.warmup: met 200"],
    ),
    ({"sheets__points": 90}, ["sheets.perplexity: met 30 with 90 points", "less than 30"]),
    ({"sheets__perplexity": 300.0}, ["sheets.perplexity: met 300, but sprites has 900", "below 300"]),
    ({"sheets__neighbours": 900}, ["sheets.neighbours: met 900, but sprites has 900 test images"]),
    ({"runtime__graph": True, "runtime__device": "cpu"}, ["runtime.graph: met true with device cpu"]),
    (
        {"methods": ["frozen_dm"], "frozen_dm__block": 5, "frozen_dm__level": 50},
        ["frozen_dm.block: met 5, but", "has 4 blocks", "1 to 4"],
    ),
    ({"methods": ["frozen_dm"], "pretrain": "FFHQ"}, ["frozen_dm.block: met null, but FFHQ has neither classes"]),
    ({"linear__penalty_min": 10.0, "linear__penalty_max": 0.1}, ["linear.penalty_min: 10 is above", "0.1"]),
    ({"diffusion__unet__norm_groups": 7}, ["diffusion.unet.norm_groups: 7", "width 32", "divisor"]),
    ({"diffusion__unet__channels": [32] * 5}, ["diffusion.unet.channels", "sprites", "16x16", "at most 4 widths"]),
    (
        {"overrides": overridden(data={"image_size": 8}, diffusion={"unet": {"channels": [8] * 4}})},
        ["diffusion.unet.channels", "CelebA", "8x8", "at most 3 widths"],
    ),
    ({"overrides": overridden(representation={"snapshots": 200})}, ["overrides.CelebA: representation.snapshots"]),
    (
        {"representation__snapshots": 2, "overrides": overridden(representation={"steps": 50})},
        ["representation.snapshots: met 2", "100 on sprites, 50 on CelebA", "the same"],
    ),
    (
        {"by_method": {"simsiam": {"representation": {"views": {"crop_scale": [0.9, 0.2]}}}}},
        ["by_method.simsiam: representation.views.crop_scale: met [0.9, 0.2]"],
    ),
    ({"search__seeds": [1, 0]}, ["search.seeds: met 0, which seeds has too"]),
    (
        {"search__grid": [tried("steps", 0)]},
        ["search.grid: simsiam, steps=0: by_method", "met 0", "at least 1"],
    ),
    ({"search__grid": [tried("weight", 1)]}, ["search.grid: simsiam, weight=1", "unknown key", "diffusion_weight"]),
    ({"search__grid": [tried("segments", 4)]}, ["search.grid: simsiam, segments=4", "unknown key"]),
    (
        {"search__grid": [tried("diti", {"stages": [1000], "dims_per_stage": None}, "diti")]},
        ["search.grid: diti, diti=", "Give both"],
    ),
    ({"search__grid": [tried("steps", 1, "disdiff")]}, ["search.grid: disdiff needs representation.codes"]),
    ({"fewshot__ways": 7}, ["fewshot.ways: met 7", "sprites has 6 classes"]),
    ({"fewshot__ways": 11, "transfer": ["CIFAR10"]}, ["fewshot.ways: met 11", "CIFAR10 has 10 classes"]),
    (
        {"fewshot__shots": [1, 36]},
        ["fewshot.shots: 5 classes with 36 support and 15 query", "0 of photos", "at most 35 shots"],
    ),
    ({"fewshot__queries": 60, "transfer": ["photos"]}, ["fewshot.shots", "none work: lower fewshot.queries"]),
    ({"data__val_fraction": 0.0001}, ["data.val_fraction: 0.0001 of", "Choose at least"]),
    ({"probmask__attributes": attribute(dims=257)}, ["probmask.attributes.3.dims: met 257", "d = 256"]),
    ({"probmask__attributes": attribute(name="Huge")}, ["probmask.attributes.3.name", "'Huge'", "Large"]),
    ({"probmask__attributes": attribute("CelebA", "Smilling")}, ["CelebA has no attribute 'Smilling'", "Smiling"]),
    ({"probmask__attributes": attribute("digits", "Red")}, ["digits has no attributes", "CelebA, Bedroom, sprites"]),
    ({"probmask__attributes": attribute(name="red")}, ["red of sprites stands there twice"]),
    (
        {"disentanglement__datasets": ["rooms", "sprites"]},
        ["disentanglement.datasets.1: sprites has no grid", "rooms, tiles"],
    ),
    (
        {"disentanglement__draws__train": 139},
        ["draws.train: met 139", "orientation of rooms has 7 values", "least 140"],
    ),
    (
        {"overrides": {"rooms": {"representation": {"segments": 1}}}},
        ["representation.segments: met 1", "disentanglement on rooms"],
    ),
    ({"disentanglement__methods": ["pdae", "disdiff"]}, ["disentanglement.methods: disdiff needs", "overrides.rooms"]),
    ({"generation__ranges": spans([16, 33])}, ["generation.ranges.0.ranges.3: met [16, 33]", "32 segments"]),
    ({"generation__ranges": spans([8, 4])}, ["met [8, 4]", "the smaller first"]),
    ({"generation__ranges": spans([0, 40], dataset="CelebA")}, ["generation.ranges.1.ranges.0", "on CelebA"]),
    ({"figures__early_middle_late": [[0, 4], [4, 8], [12, 16]]}, ["figures.early_middle_late.2: [12, 16]"]),
    ({"generation__pairs__count": 451}, ["generation.pairs.count: 902 test images", "sprites has 900"]),
    ({"generation__pairs__indices": [[0, 900]]}, ["generation.pairs.indices: 901 test images", "0 to 899"]),
]


def keys(text: str) -> set[str]:
    """What the lines of a message begin with, less the data set whose overrides they are about."""
    lines = (line.removeprefix("params:").strip().removeprefix("overrides.CelebA: ") for line in text.splitlines())
    return {line.partition(":")[0] for line in lines}


@pytest.mark.parametrize(
    ("changes", "words"), CONTRADICTIONS, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(CONTRADICTIONS)]
)
def test_a_contradiction_is_one_line_with_its_key_the_value_met_and_those_allowed(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        params.check(demo(**changes))
    text = str(error.value)
    assert text.startswith("params: ")
    assert len(keys(text)) == 1, text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    "changes",
    [
        {"representation__snapshots": 100},
        {"representation__snapshots": 2, "overrides": overridden(representation={"steps": 100})},
        {"by_method": {"simsiam": {"representation": {"steps": 50}}}, "representation__snapshots": 2},
        {"search__seeds": [1], "seeds": [0, 2]},
        {"search__grid": []},
        {"search__grid": [tried("optimizer.learning_rate", 0.1)]},
        {"search__grid": [tried("decoder_optimizer", {"name": "sgd", "learning_rate": 0.05}, "pdae")]},
        {"representation__views__crop_scale": [0.5, 0.5]},
        {"representation__views__crop_scale": None},
        {"representation__diti": {"stages": [500, 1000], "dims_per_stage": [100, 156]}},
        {"representation__optimizer": SHIPPED["representation"]["optimizer"] | {"warmup": 99}},
        {"sheets__points": 91},
        {"sheets__perplexity": 299.0},
        {"methods": ["frozen_dm"], "frozen_dm__block": 4, "frozen_dm__level": 50},
        {"methods": ["frozen_dm"], "frozen_dm__block": 1, "frozen_dm__level": 50, "pretrain": "FFHQ"},
        {"methods": ["frozen_dm"], "pretrain": "CelebA"},
        {"linear__penalty_min": 0.1, "linear__penalty_max": 0.1},
        {"diffusion__unet__channels": [8] * 4},
        {"fewshot__ways": 6},
        {"fewshot__shots": [35]},
        {"data__val_fraction": 0.001},
        {"probmask__attributes": attribute(dims=256)},
        {"probmask__attributes": attribute(name="dark_background")},
        {"probmask__attributes": attribute("CelebA", "wearing hat")},
        {"probmask__attributes": attribute("Bedroom", "any of the user's own table")},
        {"disentanglement__draws__train": 140},
        {"generation__ranges": spans([0, 32], [31, 32])},
        {
            "generation__ranges": spans([0, 64], dataset="CelebA"),
            "overrides": overridden(representation={"segments": 64}),
        },
        {"figures__early_middle_late": [[0, 4], [4, 8], [0, 32]]},
        {"generation__pairs__count": 450},
        {"generation__pairs__indices": [[0, 899]]},
        {"diffusion__source": "fetch", "diffusion__unet__norm_groups": 7},
    ],
    ids=str,
)
def test_the_last_value_that_works_is_allowed(changes: dict[str, Any]) -> None:
    params.check(demo(**changes))


def test_contradictions_of_several_sections_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        params.check(demo(linear__penalty_min=1e6, fewshot__ways=7, probmask__attributes=attribute(dims=300)))
    assert keys(str(error.value)) == {"linear.penalty_min", "fewshot.ways", "probmask.attributes.3.dims"}


def test_a_command_without_snakemake_refuses_what_its_own_section_contradicts() -> None:
    with pytest.raises(UserError, match=r"^linear\.penalty_min: 10 is above"):
        params.section(
            params.read(json.dumps({"linear": {**DEMO["linear"], "penalty_min": 10, "penalty_max": 1}})), params.Linear
        )


# ------------------------------------------------------------------------- the same measure as the stages' own
def test_the_number_of_steps_is_the_schedules() -> None:
    assert sections.TIMESTEPS == schedule.TIMESTEPS


def test_a_unet_is_refused_exactly_where_none_can_be_made() -> None:
    met = set()
    unet = params.section(demo(), params.Diffusion).unet
    for size, levels, groups in itertools.product((8, 16), (1, 3, 4, 5), (2, 3)):
        raw = demo(data__image_size=size, diffusion__unet__channels=[4] * levels, diffusion__unet__norm_groups=groups)
        raw["diffusion"]["unet"]["attention_resolutions"] = []
        lines = checks.experiment(raw, lambda name, raw=raw: raw)
        own = dataclasses.replace(unet, channels=(4,) * levels, norm_groups=groups, attention_resolutions=())
        with torch.device("meta"):
            try:
                DiffusionModel.create(own, size)
                fits = True
            except UserError:
                fits = False
        assert (lines == []) == fits, (size, levels, groups, lines)
        met.add(fits)
    assert met == {True, False}


@pytest.mark.parametrize(("levels", "blocks", "attention"), [(1, 1, []), (2, 1, [4]), (3, 2, [8, 2])])
def test_a_block_of_the_frozen_model_is_refused_beyond_the_last_that_there_is(
    levels: int, blocks: int, attention: list[int]
) -> None:
    unet = DEMO["diffusion"]["unet"] | {"channels": [8] * levels, "layers_per_block": blocks}
    unet |= {"attention_resolutions": attention}
    with torch.device("meta"):
        cfg = params.section({"diffusion": DEMO["diffusion"] | {"unet": unet}}, params.Diffusion).unet
        count = len(frozen.layers(DiffusionModel.create(cfg, 8).unet))
    named = {"methods": ["frozen_dm"], "data__image_size": 8, "diffusion__unet": unet, "frozen_dm__level": 1}
    params.check(demo(**named, frozen_dm__block=count))
    with pytest.raises(UserError, match=rf"frozen_dm.block: met {count + 1}, .* has {count} blocks"):
        params.check(demo(**named, frozen_dm__block=count + 1))


def test_stages_are_refused_exactly_where_segments_cannot_follow_them() -> None:
    rng, met = np.random.default_rng(0), []
    for _ in range(300):
        count = int(rng.integers(1, 4))
        stages = sorted({*rng.integers(1, 1000, count - 1).tolist(), 1000}) if rng.random() < 0.9 else [1000, 500]
        dims = rng.multinomial(32 if rng.random() < 0.8 else 31, [1 / count] * count).tolist()
        cfg = DEMO["representation"] | {"encoder_width": 4, "segments": 8}
        lines = sections.section("representation", cfg | {"diti": {"stages": stages, "dims_per_stage": dims}})
        try:
            segments.staged_edges(32, 8, 1000, tuple(stages), tuple(dims))
            fits = True
        except UserError:
            fits = False
        assert (lines == []) == fits, (stages, dims, lines)
        met.append(fits)
    assert 50 < sum(met) < 250


def test_few_shot_settings_are_refused_exactly_where_no_episode_can_be_drawn() -> None:
    met = set()
    sizes = sources.get("digits").test_sizes
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for ways, shots in itertools.product((2, 9, 10), (40, 43, 44, 45, 46, 60)):
        raw = demo(fewshot__ways=ways, fewshot__shots=[1, shots], fewshot__episodes=2, transfer=["digits"])
        lines = checks.experiment(raw, lambda name, raw=raw: raw)
        try:
            fewshot.episodes(labels, params.section(raw, params.FewShot), "digits")
            fits = True
        except UserError as e:
            fits = False
            largest = str(e).partition("shots that works is ")[2].partition(":")[0]
            assert f"at most {largest} shots work" in lines[0]
        assert (lines == []) == fits, (ways, shots, lines)
        met.add(fits)
    assert met == {True, False}
