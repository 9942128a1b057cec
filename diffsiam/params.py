"""The experiment's parameters: typed dataclasses. Values are checked by `diffsiam.schema`, and by `diffsiam.checks`
where a schema has no words for it. Which results depend on which of them: `diffsiam.stages`. It is long
because the sections are many."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from diffsiam import checks, schema, sections
from diffsiam.errors import UserError


@dataclasses.dataclass(frozen=True)
class Data:
    root: str
    image_size: int
    max_broken: float
    val_fraction: float
    split_seed: int
    resize: str = "short_side"
    val_draw: str = "stratified"


@dataclasses.dataclass(frozen=True)
class Fetch:
    location: str
    format: str
    sha256: str | None


@dataclasses.dataclass(frozen=True)
class Unet:
    channels: tuple[int, ...]
    layers_per_block: int
    attention_resolutions: tuple[int, ...]
    norm_groups: int
    dropout: float


@dataclasses.dataclass(frozen=True)
class Diffusion:
    source: str
    fetch: Fetch
    unet: Unet
    steps: int
    batch_size: int
    learning_rate: float
    grad_clip: float | None
    ema_decay: float
    flip: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Diti:
    stages: tuple[int, ...] | None
    dims_per_stage: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Optimizer:
    name: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup: int


@dataclasses.dataclass(frozen=True)
class Codes:
    """The codes z is cut into, for DisDiff; with them the encoder is its own, of every method."""

    count: int
    dim: int
    embedding: str
    reconstruction: str
    weight: float
    least_signal: float
    weighting: str
    encoder_gradient: str


@dataclasses.dataclass(frozen=True)
class Views:
    crop_scale: tuple[float, float] | None
    flip: float
    jitter: tuple[float, float, float, float]
    jitter_probability: float
    grey_probability: float
    blur_from: int


@dataclasses.dataclass(frozen=True)
class Representation:
    encoder_width: int
    stem: str
    zero_init_residual: bool
    last_relu: bool
    segments: int
    time_input: str
    loss_space: str
    ssl_weight: float
    diffusion_weight: float
    diti: Diti
    codes: Codes | None
    steps: int
    batch_size: int
    optimizer: Optimizer
    fixed_predictor_rate: bool
    decoder_optimizer: Optimizer
    grad_clip: float | None
    ema_decay: float
    flip: float
    views: Views
    collapse_below: float
    snapshots: int

    @property
    def dim(self) -> int:
        """d: numbers in the representation z."""
        return self.codes.count * self.codes.dim if self.codes else 8 * self.encoder_width

    @property
    def encoder(self) -> str:
        """Its kind, of `diffsiam.models.encoder.build`."""
        return "conv" if self.codes else "resnet10"


@dataclasses.dataclass(frozen=True)
class FrozenDm:
    """Which block of the frozen diffusion model is an encoder, fed images noised to which step; None for the best."""

    levels: tuple[int, ...]
    block: int | None
    level: int | None


@dataclasses.dataclass(frozen=True)
class Features:
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Linear:
    penalties: int
    penalty_min: float
    penalty_max: float
    standardize: bool
    tolerance: float
    solver: str = "exact"


@dataclasses.dataclass(frozen=True)
class FewShot:
    ways: int
    shots: tuple[int, ...]
    queries: int
    episodes: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    dampening: float
    weight_decay: float
    normalize: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute classifier: ``dims`` of the representation's dimensions carry its weight."""

    dataset: str
    name: str
    dims: int

    @property
    def stems(self) -> tuple[str, str]:
        """File stems of the masked classifier and of the one on all dimensions."""
        slug = self.name.replace(" ", "_")
        return f"{slug}_{self.dims}", f"{slug}_all"


@dataclasses.dataclass(frozen=True)
class ProbMask:
    attributes: tuple[Attribute, ...]
    steps: int
    batch_size: int
    learning_rate: float
    mask_learning_rate: float
    seed: int


@dataclasses.dataclass(frozen=True)
class HeadBatchSize:
    attributes: int
    regression: int


@dataclasses.dataclass(frozen=True)
class HeadChoice:
    attributes: str
    regression: str


@dataclasses.dataclass(frozen=True)
class Heads:
    attributes_on: tuple[str, ...]
    regression_on: tuple[str, ...]
    epochs: int
    learning_rate: float
    batch_size: HeadBatchSize
    shuffle: bool
    flip: float
    choice: HeadChoice
    bootstrap: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Swaps:
    """How swaps of codes are sampled: from which ``x_T`` (``shared`` or ``inverted``), and how many are measured."""

    x_T: str
    samples: int


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws of the disentanglement metrics: ``train`` and ``test`` count votes of ``batch`` draws each where a metric
    votes, and single draws where it does not."""

    variance: int
    train: int
    test: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Disentanglement:
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    draws: Draws
    trees: str
    seed: int
    swaps: Swaps


@dataclasses.dataclass(frozen=True)
class Sheets:
    queries: int
    neighbours: int
    points: int
    perplexity: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Pairs:
    seed: int
    count: int
    indices: tuple[tuple[int, int], ...] | None


@dataclasses.dataclass(frozen=True)
class Ranges:
    dataset: str
    ranges: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class PixelClassifier:
    width: int
    steps: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Generation:
    methods: tuple[str, ...]
    steps: int
    inversion_steps: int | None
    solver: str
    inversion: str
    guidance: str
    clip: bool
    batch_size: int
    pairs: Pairs
    ranges: tuple[Ranges, ...]
    exchange_noise: bool | str
    scales: tuple[float, ...]
    manipulation_scales: tuple[float, ...]
    noise_levels: tuple[int, ...]
    measured: int
    frechet_images: int | None
    classifier: PixelClassifier


@dataclasses.dataclass(frozen=True)
class FigureData:
    fig1_1: str
    fig3_1: str
    fig4_1: str
    fig4_2: str
    fig4_3: str
    fig4_4: str
    fig4_5: str
    fig4_6: str
    fig4_7: str
    fig4_8: str
    fig4_9: str


@dataclasses.dataclass(frozen=True)
class Figures:
    method: str
    early_middle_late: tuple[tuple[int, int], ...]
    datasets: FigureData


@dataclasses.dataclass(frozen=True)
class Runtime:
    device: str
    precision: str
    threads: int
    deterministic: bool
    compile: bool
    graph: bool | str
    checkpoint_minutes: float
    tensorboard: bool


SECTIONS: dict[str, type] = {
    "data": Data,
    "diffusion": Diffusion,
    "representation": Representation,
    "frozen_dm": FrozenDm,
    "features": Features,
    "linear": Linear,
    "fewshot": FewShot,
    "probmask": ProbMask,
    "heads": Heads,
    "disentanglement": Disentanglement,
    "sheets": Sheets,
    "generation": Generation,
    "figures": Figures,
    "runtime": Runtime,
}

# Environment variable: all sections and overrides as JSON, for the leaves that a rule does not record.
VARIABLE = "DIFFSIAM_PARAMS"

T = TypeVar("T")


def place(path: str) -> Path:
    """What a path of params.yaml stands for; the home of a user whom nobody knows is a name like any other."""
    return Path(os.path.expanduser(path))


def read(*sources: str) -> dict[str, Any]:
    """Merge parameter sources, later ones over earlier ones, and check what is there.

    Args:
        sources: paths of YAML files, or JSON objects written out; a key that no source gives is simply absent.
    Returns:
        The merged mapping, nested as in params.yaml.
    Raises:
        UserError: a source cannot be read, or a key or value is not allowed.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        merged = schema.merge(merged, schema.parse(source))
    check(merged, complete=False)
    return merged


def check(raw: dict[str, Any], *, complete: bool = True) -> None:
    """Check a nested mapping against the schema; with ``complete``, absent keys are errors too, and so is what `checks`
    finds in the whole."""
    schema.check(raw, complete=complete)
    if complete:
        lines = [line for name in SECTIONS for line in sections.section(name, raw[name])]
        for dataset in raw["overrides"]:
            own = (line for name in SECTIONS for line in sections.section(name, of(raw, dataset)[name]))
            lines += [f"overrides.{dataset}: {line}" for line in own if line not in lines]
        for method, dataset in itertools.product(raw["by_method"], (raw["pretrain"], *raw["overrides"])):
            mine = sections.section("representation", of(raw, dataset, method)["representation"])
            lines += [f"by_method.{method}: {line}" for line in mine if line not in lines]
        lines += checks.experiment(raw, functools.partial(of, raw))
        if lines:
            raise UserError("params: " + "\n        ".join(lines))


def of(raw: dict[str, Any], dataset: str, method: str = "") -> dict[str, Any]:
    """``raw`` as it stands for one data set and the trainings on it, of one method where it is named: with the data
    set's `overrides`, and over them the method's own settings, `by_method`."""
    own = schema.merge(raw, raw["overrides"].get(dataset, {}))
    return schema.merge(own, raw["by_method"].get(method, {}))


def section(raw: dict[str, Any], cls: type[T]) -> T:
    """The typed section of ``raw`` that ``cls`` stands for; an absent key, and what `checks` finds in the section, is a
    `UserError`."""
    name = next(k for k, v in SECTIONS.items() if v is cls)
    built = _build(cls, raw.get(name, {}), name)
    if lines := sections.section(name, raw[name]):
        raise UserError("\n".join(lines))
    return built


def select(raw: dict[str, Any], leaves: tuple[str, ...], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The part of ``raw`` below the dotted ``leaves``, nested as in ``raw``, less the dotted leaves ``without``."""
    out: dict[str, Any] = {}
    for leaf in leaves:
        keys = leaf.split(".")
        value: Any = functools.reduce(lambda node, key: node[key], keys, raw)
        out = schema.merge(out, functools.reduce(lambda node, key: {key: node}, reversed(keys), value))
    for leaf in without:
        out = _less(out, leaf.split("."))
    return out


def _less(node: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """``node`` without what ``keys`` lead to, where there is such a thing."""
    if len(keys) == 1:
        return {k: v for k, v in node.items() if k != keys[0]}
    inner = node[keys[0]]
    return {**node, keys[0]: _less(inner, keys[1:]) if isinstance(inner, dict) else inner}


def _build(cls: type[T], raw: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in raw:
            raise UserError(f"params: {where}.{field.name} is missing. Copy it from workflow/presets/demo.yaml.")
        hint, value = hints[field.name], raw[field.name]
        if isinstance(value, dict):
            hint = next((kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)), hint)
        if dataclasses.is_dataclass(hint):
            value = _build(typing.cast(type, hint), value, f"{where}.{field.name}")
        elif isinstance(value, list):
            value = _tuple(value, next(iter(typing.get_args(hint)), object), f"{where}.{field.name}")
        elif hint is float or (isinstance(hint, types.UnionType) and float in hint.__args__ and value is not None):
            value = float(value)
        values[field.name] = value
    return cls(**values)


def _tuple(values: list[Any], item: Any, where: str) -> tuple[Any, ...]:
    """A list as a tuple, inner lists as well; mappings become the dataclass ``item``."""
    if dataclasses.is_dataclass(item):
        return tuple(_build(typing.cast(type, item), v, f"{where}.{i}") for i, v in enumerate(values))
    return tuple(_tuple(v, object, where) if isinstance(v, list) else v for v in values)
