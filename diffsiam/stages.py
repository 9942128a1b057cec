"""What the results of each kind of job depend on: the leaves of params.yaml that its code reads.

A rule records its row, so an edit of a leaf re-runs the rules whose rows have it, what follows them, and nothing else.
Tests compare the rows with what the code reads, and every leaf with what an edit of it plans.
"""

from __future__ import annotations

from typing import Any

from diffsiam import params

_DEVICE = ("runtime.device", "runtime.threads", "runtime.deterministic")
_CAPTURED = (*_DEVICE, "runtime.graph")
_TRAINING = (*_CAPTURED, "runtime.precision", "runtime.compile")
_UNGUIDED = tuple(
    f"generation.{name}"
    for name in ("steps", "inversion_steps", "solver", "inversion", "clip", "batch_size", "pairs.seed")
)
_SAMPLING = (*_UNGUIDED, "generation.guidance")
_SHOWN = ("generation.pairs.count", "generation.pairs.indices")
# The ranges are of the trained segments; of a method that has none (PDAE), of as many.
_RANGES = ("generation.ranges", "representation.segments")
_DRAWN_TO = ("generation.exchange_noise", "generation.scales")
_HEADS = tuple(f"heads.{name}" for name in ("epochs", "learning_rate", "shuffle", "bootstrap", "seed"))
_HEADS_ON = ("heads.attributes_on", "heads.regression_on")
_EXPERIMENT = ("methods", "seeds", "pretrain", "transfer")

# Trainings of representations depend on their row less `Method.unused`.
PARAMS: dict[str, tuple[str, ...]] = {
    "data": (
        *(f"data.{name}" for name in ("image_size", "max_broken", "resize", "val_fraction", "val_draw", "split_seed")),
        "datasets",
    ),
    "attributes": _DEVICE,
    # The diffusion model, by `diffusion.source`:
    "pretrain": (
        *(f"diffusion.{name}" for name in ("source", "unet", "steps", "batch_size", "learning_rate", "grad_clip")),
        *("diffusion.ema_decay", "diffusion.flip", "diffusion.seed", *_TRAINING),
    ),
    "fetch": ("diffusion.source", "diffusion.fetch"),
    "representation": ("representation", *_TRAINING),
    "untrained": ("representation", *_DEVICE),
    "frozen_dm": ("frozen_dm", *_DEVICE),
    "features": ("features", *_DEVICE),
    "linear": ("linear",),
    "fewshot": ("fewshot",),
    "probmask": ("probmask", *_DEVICE),
    "heads_attributes": (*_HEADS, "heads.batch_size.attributes", "heads.choice.attributes", "heads.flip"),
    "heads_regression": (*_HEADS, "heads.batch_size.regression", "heads.choice.regression"),
    "disentanglement": (
        *(f"disentanglement.{name}" for name in ("metrics", "draws", "trees", "seed")),
        "representation.segments",
    ),
    "swaps": ("disentanglement.swaps", *_UNGUIDED, "representation.segments", *_CAPTURED),
    "sheet_neighbours": ("sheets.queries", "sheets.neighbours", "sheets.seed"),
    "sheet_embedding": ("sheets.points", "sheets.perplexity", "sheets.seed"),
    "sheet_segments": ("sheets.seed",),
    "denoise": ("generation.pairs", "generation.noise_levels", *_CAPTURED),
    "counterfactual": (*_SAMPLING, *_SHOWN, *_RANGES, *_DRAWN_TO, *_CAPTURED),
    "manipulation": (*_SAMPLING, *_SHOWN, "generation.manipulation_scales", *_CAPTURED),
    "numbers": (
        *_SAMPLING,
        *_RANGES,
        "generation.manipulation_scales",
        "generation.measured",
        "generation.frechet_images",
        *_CAPTURED,
    ),
    "classifier": ("generation.classifier", *_CAPTURED),
    "figure": (),
    "figure4_2": ("figures.early_middle_late",),
    "tables": _EXPERIMENT,
    "heads_table": ("methods", "seeds", "pretrain", *_HEADS_ON),
}
# Leaves that decide which jobs there are and what they are given: what is missing is made.
JOBS = (
    *_EXPERIMENT,
    *_HEADS_ON,
    *("disentanglement.datasets", "disentanglement.methods"),
    *("generation.methods", "figures.method", "figures.datasets", "overrides", "by_method"),
    *("search.seeds", "search.grid"),
)
# Where images of one's own lie; their fingerprints tell what is there.
_PLACES = ("path", "attributes")
# Leaves that no result depends on.
UNTRACKED = (
    *(f"datasets.*.{name}" for name in _PLACES),
    "data.root",
    "representation.collapse_below",
    "runtime.checkpoint_minutes",
    "runtime.tensorboard",
)


def share(
    raw: dict[str, Any], stage: str, dataset: str, without: tuple[str, ...] = (), method: str = ""
) -> dict[str, Any]:
    """The row of ``stage``, less ``without``, in a job on ``dataset`` for ``method``: with the overrides of the one and
    the settings of the other, and of `datasets` and lists with a row for each of several data sets what is about this
    one."""
    selected = params.select(params.of(raw, dataset, method), PARAMS[stage], without)
    if own := selected.pop("datasets", {}).get(dataset):
        selected["datasets"] = {dataset: {key: value for key, value in own.items() if key not in _PLACES}}
    return {
        name: {key: _rows(value, dataset) for key, value in part.items()} if isinstance(part, dict) else part
        for name, part in selected.items()
    }


def _rows(value: Any, dataset: str) -> Any:
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return [row for row in value if row["dataset"] == dataset]
    return value
