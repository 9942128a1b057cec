"""An edit of any leaf of params.yaml plans the jobs that `diffsiam.stages` says depend on it, what follows them, and
nothing else. Nothing is computed: the finished run that edits are planned against is of empty files."""

from __future__ import annotations

import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffsiam import stages
from diffsiam.training.methods import METHODS
from tests.dvc.clones import Clone, closure, merged, working_tree
from tests.test_params import leaves
from tests.training import tiny

JOBS = Path(__file__).resolve().parents[1] / "dvc" / "jobs.py"
TARGETS = ("all", "figures", "curve", "attributes_tables", "disentanglement", "search", "sheets")
EXPERIMENT = {  # over the demo: of everything that rules come in, at least two
    "methods": ["untrained", "frozen_dm", "simsiam", "pdae", "diti", "diffsiam_hier"],
    "transfer": ["digits"],
    "representation": {"snapshots": 1},
    "probmask": {
        "attributes": [
            {"dataset": "sprites", "name": "Red", "dims": 16},
            {"dataset": "CelebA", "name": "Smiling", "dims": 16},
        ]
    },
    "disentanglement": {"methods": ["untrained", "pdae"]},
    "search": {"seeds": [7], "grid": [{"method": "simsiam", "settings": {"ssl_weight": [2.0]}}]},
    "generation": {
        "methods": ["pdae", "diti", "diffsiam_hier"],
        "ranges": [
            {"dataset": "sprites", "ranges": [[0, 4], [4, 8], [12, 14], [16, 32]]},
            {"dataset": "CelebA", "ranges": [[0, 4], [4, 8], [12, 14]]},
        ],
    },
    "figures": {"datasets": {"fig1_1": "birds"}},
}
BY_METHOD = {"diti": {"representation": {"diffusion_weight": 30.0}}}
OVERRIDES = {"birds": {"diffusion": {"source": "fetch"}}}
OWN = {"path": "birds", "layout": "classes", "metric": "accuracy", "validation": 0.3, "attributes": "birds.csv"}

# Another value of the leaves for which `another` gives none.
VALUES: dict[str, Any] = {
    "methods": ["untrained", "pdae", "diti", "diffsiam_hier"],
    "seeds": [0, 1],
    "pretrain": "digits",
    "transfer": ["digits", "photos"],
    "datasets.birds.path": "wings",
    "datasets.birds.layout": "flat",
    "datasets.birds.metric": "mean_per_class",
    "datasets.birds.attributes": "wings.csv",
    "data.root": "elsewhere",
    "data.max_broken": 0.5,
    "data.resize": "few_shot",
    "data.val_draw": "uniform",
    "data.val_fraction": 0.1,
    "diffusion.source": "fetch",
    "diffusion.fetch.location": "somebody/else",
    "diffusion.fetch.format": "guided",
    "diffusion.fetch.sha256": 64 * "0",
    "diffusion.unet.channels": [32, 32],
    "diffusion.unet.attention_resolutions": [],
    "representation.stem": "7x7",
    "representation.time_input": "noise_level",
    "representation.loss_space": "noise",
    "representation.diti.stages": [300, 1000],
    "representation.diti.dims_per_stage": [56, 200],
    "representation.codes": tiny.CODES | {"count": 32, "dim": 8},
    "representation.optimizer.name": "adam",
    "representation.optimizer.schedule": "constant",
    "representation.decoder_optimizer.name": "sgd",
    "representation.decoder_optimizer.schedule": "constant",
    "representation.decoder_optimizer.weight_decay": 0.1,
    "representation.grad_clip": 1.0,
    "representation.flip": 0.5,
    "representation.views.crop_scale": None,
    "representation.views.jitter": [0.3, 0.4, 0.4, 0.1],
    "frozen_dm.levels": [10],
    "linear.solver": "capped",
    "frozen_dm.block": 1,
    "frozen_dm.level": 10,
    "fewshot.ways": 4,
    "fewshot.shots": [1, 5],
    "fewshot.normalize": "norm",
    "probmask.attributes": [
        {"dataset": "sprites", "name": "Blue", "dims": 16},
        EXPERIMENT["probmask"]["attributes"][1],
    ],
    "heads.attributes_on": ["CelebA"],
    "heads.regression_on": ["LFW"],
    "heads.choice.attributes": "last",
    "heads.choice.regression": "val",
    "disentanglement.datasets": ["rooms", "tiles"],
    "disentanglement.methods": ["untrained", "diti"],
    "disentanglement.metrics": ["mig"],
    "disentanglement.trees": "sklearn",
    "disentanglement.swaps.x_T": "inverted",
    "generation.methods": ["pdae", "diffsiam_hier"],
    "generation.inversion_steps": 50,
    "generation.solver": "ddim",
    "generation.inversion": "frozen",
    "generation.guidance": "score",
    "generation.pairs.indices": [[0, 1], [2, 3]],
    "generation.ranges": [
        {"dataset": "sprites", "ranges": [[0, 4], [4, 8], [12, 14], [0, 16]]},
        EXPERIMENT["generation"]["ranges"][1],
    ],
    "generation.exchange_noise": False,
    "generation.scales": [0.5, 1.0],
    "generation.manipulation_scales": [-3.0, 0.0, 3.0],
    "generation.noise_levels": [100, 500],
    "generation.frechet_images": 100,
    "figures.method": "diti",
    "figures.early_middle_late": [[0, 4], [4, 8], [16, 32]],
    **{f"figures.datasets.fig{number}": "CelebA" for number in ("1_1", "3_1", *(f"4_{i}" for i in range(1, 10)))},
    "overrides": {},
    "by_method": {},
    "search.seeds": [8],
    "search.grid": [{"method": "simsiam", "settings": {"ssl_weight": [3.0]}}],
    "runtime.device": "cpu",
    "runtime.precision": "fp32",
    "runtime.graph": False,
}
TOGETHER = (  # one of them alone is refused
    ("representation.diti.stages", "representation.diti.dims_per_stage"),
    ("frozen_dm.block", "frozen_dm.level"),
)
# Edits after which there are other files than before: those that are missing are made.
FILES = (*stages.JOBS, "probmask.attributes", "representation.snapshots", "representation.steps")
Job = dict[str, Any]


def keys(raw: dict[str, Any]) -> list[str]:
    """The leaves; the data sets' overrides as one, and the methods' settings."""
    return sorted(leaves(raw | {"overrides": None, "by_method": None}))


def value_at(tree: Any, keys: list[str]) -> Any:
    """None where a key is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def edited(raw: dict[str, Any], leaf: str) -> dict[str, Any]:
    """``raw`` with another value of ``leaf``."""
    copy = json.loads(json.dumps(raw))
    for name in next((group for group in TOGETHER if leaf in group), [leaf]):
        *heads, last = name.split(".")
        node = value_at(copy, heads)
        before = node[last]
        node[last] = VALUES[name] if name in VALUES else another(before)
        assert node[last] != before, name
    return copy


def another(value: Any) -> Any:
    """A switch turned; half of a share or a rate; twice a count."""
    if isinstance(value, bool):
        return not value
    return value / 2 if isinstance(value, float) else 2 * value or 1


def row(job: Job, raw: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The row of `diffsiam.stages` that a job's rule records, and the leaves that its method leaves unused."""
    first, _, rest = job["rule"].partition("_")
    if job["rule"] == "heads_features":
        return "features", ()
    match first:
        case "diffusion":
            return raw["overrides"].get(job["wildcards"]["pretrain"], raw)["diffusion"]["source"], ()
        case "representation" | "search" if rest:
            return "representation" if METHODS[rest].trained else rest, METHODS[rest].unused
        case "data" | "features" | "linear" | "fewshot" | "probmask" | "swaps":
            return first, ()
        case "heads":
            return f"heads_{rest.removeprefix('floors_')}", ()
        case "generate":
            return rest, ()
        case "pixel":
            return "classifier", ()
        case "sheet":
            return job["rule"], ()
        case "disentangle":
            return "disentanglement", ()
        case "table4" | "summary" | "provenance" | "page":
            return "tables", ()
    return "figure4_2" if job["rule"] == "fig4_2" else "figure", ()


def depends(job: Job, leaf: str, raw: dict[str, Any]) -> bool:
    """Whether the row declares it, and neither the job's data set nor its method has a value of its own."""
    name, unused = row(job, raw)
    kind, _, method = job["rule"].partition("_")
    dataset = job["wildcards"].get("pretrain", job["rule"].partition("_")[2])
    if leaf == "overrides":
        return any(entry.split(".")[0] in raw["overrides"].get(dataset, {}) for entry in stages.PARAMS[name])
    if leaf == "by_method":
        return name == "representation" and method in raw["by_method"]
    if leaf.startswith("datasets.birds.") and job["wildcards"].get("dataset") != "birds":
        return False
    if dataset != "sprites" and leaf in ("generation.ranges", "probmask.attributes"):
        return False  # only its rows are edited here
    if value_at(raw["overrides"], [dataset, *leaf.split(".")]) is not None:
        return False
    if value_at(raw["by_method"], [method, *leaf.split(".")]) is not None:
        return False
    if kind == "search" and leaf in ("representation.ssl_weight", "representation.snapshots"):
        return False  # what the trial tries, and what none leaves
    idle = (*unused, *stages.UNTRACKED)
    return any(within(leaf, entry) for entry in stages.PARAMS[name]) and not any(within(leaf, u) for u in idle)


def within(leaf: str, name: str) -> bool:
    return fnmatch.fnmatch(leaf, name) or leaf.startswith(f"{name}.")


def outputs(jobs: list[Job]) -> dict[str, set[str]]:
    """By first output, the inputs of the jobs that have one."""
    return {job["output"][0]: set(job["input"]) for job in jobs if job["output"]}


def expected(leaf: str, raw: dict[str, Any], before: list[Job], after: list[Job]) -> set[str]:
    """First outputs of the jobs that the edit of ``leaf`` is to run."""
    known, made = outputs(before), {file for job in before for file in job["output"]}
    own = {i for i, job in enumerate(after) if depends(job, leaf, raw)}
    if any(within(leaf, name) for name in FILES):
        for i, job in enumerate(after):
            if job["output"] and (known.get(job["output"][0]) != set(job["input"]) or not made >= set(job["output"])):
                own.add(i)
    downwards = [(str(need), str(i)) for i, job in enumerate(after) for need in job["needs"]]
    behind = {int(i) for i in closure(map(str, own), downwards)}
    # The features behind curves and trials are temporary: whoever reads them has them made again.
    temporary = ("features_snapshot", "features_trial")
    behind |= {i for j in behind for i in after[j]["needs"] if after[i]["rule"] in temporary}
    return {after[i]["output"][0] for i in behind if after[i]["output"]}


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    demo = yaml.safe_load((Path(__file__).resolve().parents[2] / "workflow/presets/demo.yaml").read_text())
    free = {"overrides": OVERRIDES, "by_method": BY_METHOD, "datasets": {"birds": OWN}}
    return merged(demo, EXPERIMENT) | free


@pytest.fixture(scope="module")
def plans(raw: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Job]]:
    """What is planned after an edit of each leaf of a finished run, and under "" after none."""
    clone = working_tree(tmp_path_factory.mktemp("edits"), tmp_path_factory.mktemp("scratch"))
    (clone.root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    finish(clone, *TARGETS)
    names = ["", *keys(raw)]
    texts = [yaml.safe_dump(edited(raw, name) if name else raw, sort_keys=False) for name in names]
    (clone.root / "edits.json").write_text(json.dumps(texts))
    said = clone.run(sys.executable, str(JOBS), "--edits", "edits.json", *TARGETS).stdout
    return dict(zip(names, json.loads(said.splitlines()[-1]), strict=True))


def finish(clone: Clone, *targets: str, there: Clone | None = None) -> None:
    """Empty files in the place of all results, and Snakemake's records of them; with ``there``, in that folder."""
    place = there or clone
    for job in json.loads(clone.run(sys.executable, str(JOBS), *targets).stdout.splitlines()[-1]):
        for file in job["output"]:
            (place.root / file).parent.mkdir(parents=True, exist_ok=True)
            (place.root / file).touch()
    options = ("--snakefile", str(clone.root / "Snakefile"), "--cores", "all", "--touch", "--forceall")
    place.run("snakemake", *options, *targets, DIFFSIAM_RESTORE="1")


def test_every_leaf_is_declared_once(raw: dict[str, Any]) -> None:
    """As read by jobs, as what decides which jobs there are, or as what no result depends on."""
    read = {entry for entries in stages.PARAMS.values() for entry in entries}
    for leaf in keys(raw):
        jobs, untracked = (any(within(leaf, name) for name in names) for names in (stages.JOBS, stages.UNTRACKED))
        known = any(within(leaf, name) for name in read) and not untracked
        assert known + untracked + (jobs and not known) == 1, leaf


@pytest.mark.slow
def test_an_edit_of_any_leaf_plans_what_depends_on_it_and_nothing_else(
    raw: dict[str, Any], plans: dict[str, list[Job]]
) -> None:
    before = plans[""]
    assert [job["rule"] for job in before if job["runs"] and job["output"]] == []
    wrong = {}
    for leaf in keys(raw):
        planned = {job["output"][0] for job in plans[leaf] if job["runs"] and job["output"]}
        should = expected(leaf, raw, before, plans[leaf])
        if planned != should:
            wrong[leaf] = {"not planned": sorted(should - planned), "planned for nothing": sorted(planned - should)}
    assert wrong == {}
