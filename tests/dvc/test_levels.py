"""dvc.yaml holds what Snakemake's own DAG, params and code ask for, and nothing else."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import Stage

from diffsiam import digest
from diffsiam.data.fingerprint import MEMORY
from diffsiam.stages import share
from tests.dvc.clones import Clone, closure

JOBS = Path(__file__).parent / "jobs.py"
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")
FACTORS = {"dataset": "datasets", "pretrain": "datasets", "method": "methods"}  # the same, of disentanglement
BETWEEN = ("diffusion", "representation", "features")
LISTS = {"dataset": "transfer", "seed": "seeds", "method": "methods"}  # wildcard: the list that its values come from


@pytest.fixture
def clone(fresh: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """Several of everything that params.yaml lists."""
    clone = fresh.clone(tmp_path / "repo")
    clone.edit("methods", ["frozen_dm", "simsiam", "diti", "diffsiam_hier"])
    clone.edit("seeds", [0, 1])
    clone.edit("transfer", ["digits", "photos"])
    clone.edit("heads.regression_on", ["sprites"])
    clone.edit("disentanglement.datasets", ["rooms"])
    clone.edit("disentanglement.methods", ["frozen_dm", "pdae", "diti", "diffsiam_hier"])
    monkeypatch.chdir(clone.root)  # DVC names stages as seen from here
    return clone


def test_each_stage_has_the_deps_params_and_outs_of_the_rules_under_it(clone: Clone) -> None:
    assert differences(clone) == []


def test_a_rule_without_a_stage_is_named(clone: Clone) -> None:
    rule = 'rule extra:\n    output: "results/extra.csv"\n    log: "extra.log"\n    shell: "touch {output}"'
    clone.replace("workflow/rules/metrics.smk", "\nlocalrules:", f"\n{rule}\n\n\nlocalrules:")
    clone.replace("Snakefile", "rules.metrics.output,", "rules.metrics.output,\n        rules.extra.output,")
    assert differences(clone) == ["no stage makes results/extra.csv of rule extra"]


def test_a_missing_parameter_an_idle_dependency_and_a_forgotten_output_are_named(clone: Clone) -> None:
    clone.replace("dvc.yaml", "params: [linear, ", "params: [")
    clone.replace("dvc.yaml", "      - diffsiam/evaluation/knn.py\n", "      - diffsiam/models/unet.py\n")
    clone.replace("dvc.yaml", "      - results/plots: {cache: false, persist: true}\n", "")
    found = differences(clone)
    assert "linear: lacks params linear.penalties" in found
    assert "linear: lacks deps diffsiam/evaluation/knn.py" in found
    assert "linear: has deps diffsiam/models/unet.py for nothing" in found
    assert "tables: lacks outs results/plots/loss.csv" in found


def test_caches_what_git_ignores_and_keeps_every_output_for_resuming(clone: Clone) -> None:
    for stage in Repo(str(clone.root)).index.stages:
        for out in stage.outs:
            inside = out.def_path if Path(out.def_path).suffix else f"{out.def_path}/file"
            ignored = clone.run("git", "check-ignore", "--quiet", inside, check=False).returncode == 0
            assert out.use_cache == ignored, out
            assert out.persist, out


def test_no_stage_names_a_profile_or_an_executor_so_that_the_environment_may(clone: Clone) -> None:
    for stage in Repo(str(clone.root)).index.stages:
        words = stage.cmd.split()
        assert words[:4] == ["snakemake", "--cores", "all", "--rerun-incomplete"]
        assert not any(word.startswith("-") for word in words[4:])


def differences(clone: Clone) -> list[str]:
    """What dvc.yaml lacks, and what it has for nothing."""
    repo = Repo(str(clone.root))
    stages = {stage.addressing: stage for stage in repo.index.stages}
    targets = {name: [w for w in stage.cmd.split()[3:] if not w.startswith("-")] for name, stage in stages.items()}
    asked = sorted({"all", *(word for words in targets.values() for word in words)})
    jobs = json.loads(clone.run(sys.executable, str(JOBS), *asked).stdout.splitlines()[-1])
    by_rule = {job["rule"]: i for i, job in enumerate(jobs)}
    downwards = [(str(i), str(other)) for i, job in enumerate(jobs) for other in job["needs"]]

    def needed(words: Iterable[str]) -> set[int]:
        found = closure((str(by_rule[word]) for word in words), downwards)
        return {int(i) for i in found if jobs[int(i)]["output"]}

    before = [(s.addressing, other.addressing) for s, other in repo.index.graph.edges]  # (stage, what it depends on)
    expected: dict[tuple[str, str], set[str]] = defaultdict(set)
    actual: dict[tuple[str, str], set[str]] = defaultdict(set)
    made: set[str] = set()
    for name, stage in stages.items():
        earlier = set().union(*(needed(targets[other]) for other in closure([name], before) - {name}))
        own = [jobs[i] for i in sorted(needed(targets[name]) - earlier)]
        group, _, item = name.partition("@")  # what one method of a foreach needs, all have
        for what, (asks, has) in compare(own, stage, clone.root).items():
            expected[group, what] |= {path.replace(f"/{item}", "/${item}") if item else path for path in asks}
            actual[group, what] |= {path.replace(f"/{item}", "/${item}") if item else path for path in has}
        made |= {file for job in own for file in job["output"]}
    lines = []
    for group, what in expected:
        asks, has = expected[group, what], actual[group, what]
        lines += [f"{group}: lacks {what} {item}" for item in sorted(asks - has)]
        lines += [f"{group}: has {what} {item} for nothing" for item in sorted(has - asks)]
    for i in sorted(needed(["all"])):
        lines += [f"no stage makes {file} of rule {jobs[i]['rule']}" for file in jobs[i]["output"] if file not in made]
    return lines


def compare(jobs: list[dict[str, Any]], stage: Stage, root: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Outs, deps and params: what the jobs of a stage ask for, and what the stage has."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    factors = params["disentanglement"]["datasets"]
    # What lies between factor data and its table is kept by no stage.
    between = tuple(f"results/{level}/{name}/" for level in BETWEEN for name in factors if name != params["pretrain"])
    outputs = {file for job in jobs for file in job["output"]}
    inputs = {file for job in jobs for file in job["input"]} - outputs
    outputs = {file for file in outputs if not file.startswith(between)}
    # What the planning process remembers of sources, which DVC sees as files.
    inputs |= {
        f"{MEMORY}/{job['rule']}/{next(iter(job['wildcards'].values()))}.json"
        for job in jobs
        if "seen" in job["params"]
    }
    if not jobs:  # the stage that only looks at the sources
        outputs.add(f"{MEMORY}/data")
    outs = {out.def_path for out in stage.outs}
    deps = {str(Path(dep.fs_path).relative_to(root)) for dep in stage.deps if not isinstance(dep, ParamsDependency)}
    names = {name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params}

    codes = {job["params"]["code"] for job in jobs if "code" in job["params"]}
    modules = {m for level in digest.STAGE_MODULES if digest.digest(level) in codes for m in digest.modules(level)}
    files = {str(digest.source(m).relative_to(digest.PACKAGE.parent)) for m in modules} | {job["file"] for job in jobs}

    own = {known(leaf, params) for job in jobs for leaf in leaves(json.loads(job["params"].get("own", "{}")))}
    if any(job["rule"] == "diffusion" for job in jobs):  # by diffusion.source, which DVC does not look at
        own |= set().union(*(leaves(share(params, source, "")) for source in ("pretrain", "fetch")))
    scored = [job["wildcards"] for job in jobs if {*job["wildcards"].values()} & {*factors}]
    values = {(key, value) for job in jobs for key, value in job["wildcards"].items() if job["wildcards"] not in scored}
    lists = {LISTS[key] for key, value in values if key in LISTS and value not in "/".join(outs).split("/")}
    if any(key == "dataset" and value not in params["transfer"] for key, value in values):
        lists |= {"pretrain", "heads.attributes_on", "heads.regression_on"}
    lists |= {f"disentanglement.{FACTORS[key]}" for wildcards in scored for key in wildcards if key in FACTORS}
    lists |= {LISTS[key] for wildcards in scored for key in wildcards if key == "seed"}
    return {
        "outs": ({covering(file, outs) for file in outputs}, outs),
        "deps": ({covering(file, deps) for file in inputs} | files, deps),
        # These are asked for as a whole: what of them reaches a job stands in its own parameters.
        "params": (
            own | lists,
            {leaf for name in names - {"overrides", "by_method"} for leaf in leaves(at(params, name), name)},
        ),
    }


def covering(file: str, paths: set[str]) -> str:
    """The path among ``paths`` that is ``file`` or a folder around it; ``file`` itself where there is none."""
    return next((path for path in paths if file == path or file.startswith(f"{path}/")), file)


def at(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree[key]
    return tree


def known(leaf: str, params: Any) -> str:
    """``leaf``, or what is above it and null in params.yaml, of which a data set's overrides have more."""
    keys = leaf.split(".")
    heads = (".".join(keys[:i]) for i in range(1, len(keys)))
    return next((head for head in heads if at(params, head) is None), leaf)


def leaves(tree: Any, prefix: str = "") -> set[str]:
    """Dotted names of the values below ``tree``."""
    if not isinstance(tree, dict):
        return {prefix}
    return set().union(*(leaves(value, f"{prefix}.{key}".strip(".")) for key, value in tree.items()))
