"""The mistakes within one section of params.yaml that the schema has no words for. `diffsiam.checks` has those between
sections."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

TIMESTEPS = 1000  # of `diffsiam.diffusion.schedule`, in a later layer
CODES = ("count", "dim", "embedding", "reconstruction", "weight", "least_signal", "weighting", "encoder_gradient")

Raw = dict[str, Any]


def section(name: str, values: Raw) -> list[str]:
    """The mistakes within one complete section."""
    rules = {
        "representation": _representation,
        "frozen_dm": _frozen_dm,
        "linear": _linear,
        "probmask": _probmask,
        "sheets": _sheets,
        "runtime": _runtime,
    }
    return [f"{name}.{line}" for line in rules[name](values)] if name in rules else []


def plain(name: str) -> str:
    """An attribute's name, whatever its case, with underscores for spaces or not."""
    return name.lower().replace("_", " ")


def _representation(cfg: Raw) -> Iterator[str]:
    segments, crop, codes = cfg["segments"], cfg["views"]["crop_scale"], cfg["codes"]
    if codes and (missing := [key for key in CODES if key not in codes]):
        yield f"codes: {', '.join(missing)} missing. Copy them from workflow/presets/demo.yaml."
        return
    dim = dimensions(cfg)
    if codes and segments != codes["count"]:
        yield (
            f"segments: met {segments} with {codes['count']} codes. With codes the two are one: set segments to "
            f"{codes['count']}, or codes.count to {segments}."
        )
    elif dim % segments:
        yield (
            f"segments: {segments} does not divide the representation's d = 8 * encoder_width = {dim}. Choose a "
            f"divisor of {dim}."
        )
    else:
        yield from _diti(cfg["diti"], segments, dim)
    if crop and crop[0] > crop[1]:
        yield f"views.crop_scale: met {crop}, the smallest share above the largest. Exchange the two."
    if cfg["snapshots"] > cfg["steps"]:
        yield (
            f"snapshots: met {cfg['snapshots']}, more than the {cfg['steps']} of representation.steps. Choose at most "
            "one per step."
        )
    for key in ("optimizer", "decoder_optimizer"):
        if (warmup := cfg[key]["warmup"]) >= cfg["steps"]:
            yield (
                f"{key}.warmup: met {warmup} with {cfg['steps']} of representation.steps, which end before the rate is "
                "reached. Choose fewer."
            )


def dimensions(cfg: Raw) -> int:
    """d: numbers in z."""
    return cfg["codes"]["count"] * cfg["codes"]["dim"] if cfg["codes"] else 8 * cfg["encoder_width"]


def _diti(cfg: Raw, segments: int, dim: int) -> Iterator[str]:
    stages, dims = cfg["stages"], cfg["dims_per_stage"]
    met = f"diti: met stages {stages} with dims_per_stage {dims}"
    if (stages is None) != (dims is None):
        yield f"{met}. Give both, or null for both: segments of equal width."
    if stages is None or dims is None:
        return
    rising = sorted(set(stages)) == stages and stages[-1] == TIMESTEPS
    if len(stages) != len(dims) or sum(dims) != dim or not rising:
        yield (
            f"{met}, which add up to {sum(dims)}. Needed are as many dims_per_stage as stages, adding up to d = {dim}, "
            f"and stages that rise to {TIMESTEPS}."
        )
        return
    first_steps = [-(-k * TIMESTEPS // segments) for k in range(segments)]
    counts = [sum(low <= step < high for step in first_steps) for low, high in itertools.pairwise((0, *stages))]
    if 0 in counts:
        yield (
            f"{met}; of the {segments} segments' first steps they hold {counts}. Every stage needs one: move stages "
            "apart, or raise representation.segments."
        )


def _frozen_dm(cfg: Raw) -> Iterator[str]:
    block, level = cfg["block"], cfg["level"]
    if (block is None) != (level is None):
        yield f"block: met {block} with level {level}. Give both, or null for both: the best on validation images."


def _linear(cfg: Raw) -> Iterator[str]:
    if cfg["penalty_min"] > cfg["penalty_max"]:
        yield f"penalty_min: {cfg['penalty_min']:g} is above penalty_max = {cfg['penalty_max']:g}. Exchange the two."


def _probmask(cfg: Raw) -> Iterator[str]:
    """Two classifiers of one attribute would share the file of the one on all dimensions."""
    seen: dict[tuple[str, str], int] = {}
    for row in cfg["attributes"]:
        key = row["dataset"], plain(row["name"])
        if key in seen:
            yield (
                f"attributes: {row['name']} of {row['dataset']} stands there twice, with dims {seen[key]} and "
                f"{row['dims']}. Keep one row for each attribute; another number of dimensions can be had with "
                f"`diffsiam probmask --attribute {row['name']!r} --dims {row['dims']}`."
            )
        seen[key] = row["dims"]


def _sheets(cfg: Raw) -> Iterator[str]:
    if cfg["points"] <= 3 * cfg["perplexity"]:
        yield (
            f"perplexity: met {cfg['perplexity']:g} with {cfg['points']} points; t-SNE takes three times as many "
            f"neighbours of each. Choose less than {cfg['points'] / 3:g}, or raise sheets.points."
        )


def _runtime(cfg: Raw) -> Iterator[str]:
    if cfg["graph"] is True and cfg["device"] == "cpu":
        yield "graph: met true with device cpu, which has no CUDA graphs. Use auto."
