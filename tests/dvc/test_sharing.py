"""Two clones on one cache, experiments and their queue, and what `dvc metrics` and `dvc plots` show."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.dvc.clones import Clone


def test_two_clones_that_run_at_once_on_one_cache_lose_nothing(finished: Clone, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    clones = [finished.clone(tmp_path / name, cache=cache, link="hardlink") for name in ("first", "second")]
    for clone, seed in zip(clones, (1, 2), strict=True):
        clone.dvc("pull")
        clone.edit("data.split_seed", seed)  # another meta.json in each, beside the same arrays
    runs = [subprocess.Popen(["dvc", "repro", "-q", "data"], cwd=clone.root, env=clone.env) for clone in clones]
    assert [run.wait() for run in runs] == [0, 0]
    metas = {(clone.root / "results/data/digits/meta.json").read_bytes() for clone in (finished, *clones)}
    assert len(metas) == 3
    for path in cache.glob("files/md5/??/*"):
        assert hashlib.md5(path.read_bytes()).hexdigest() == (path.parent.name + path.name).removesuffix(".dir")
    for clone in clones:
        assert "data" not in clone.changed()
        assert clone.planned("data_sets") == {}
        shutil.rmtree(clone.root / "results/data")
        clone.dvc("checkout", "data")  # all of it is in the cache
        assert (clone.root / "results/data/digits/meta.json").read_bytes() in metas
        clone.git("checkout", "--quiet", ".")
        clone.dvc("checkout")
        assert clone.changed() == {}
        assert clone.planned("all") == {}


@pytest.fixture(scope="module")
def varied(once_pulled: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """After an experiment in the folder itself."""
    clone = once_pulled.copy(tmp_path_factory.mktemp("varied") / "repo")
    clone.dvc("exp", "run", "-S", "fewshot.episodes=21", "--name", "here")
    return clone


def test_params_metrics_and_plots_show_what_an_experiment_did(varied: Clone) -> None:
    params = json.loads(varied.dvc("params", "diff", "--json"))
    assert params == {"params.yaml": {"fewshot.episodes": {"old": 20, "new": 21, "diff": 1}}}
    metrics = json.loads(varied.dvc("metrics", "diff", "--all", "--json"))["results/metrics.json"]
    with open(varied.root / "results/table4_2.csv", newline="") as f:
        accuracy = float(next(row["accuracy"] for row in csv.DictReader(f) if row["shots"] == "1"))
    assert metrics["1-shot.diffsiam_hier"]["new"] == accuracy
    assert metrics["linear.diffsiam_hier"]["diff"] == 0
    probe = json.loads((varied.root / "results/linear/sprites/diffsiam_hier/seed0/digits.json").read_text())
    best = max(entry["accuracy"] for entry in probe["validation"])
    assert metrics["validation.diffsiam_hier"]["new"] == round(best, 4)

    plots = json.loads(varied.dvc("plots", "diff", "--json"))
    assert not plots.get("errors")
    picture = plots["data"].pop("results/paired.png")
    assert {spec["revisions"][0] for spec in picture} == {"HEAD", "workspace"}
    contents = {name: [spec["content"] for spec in specs] for name, specs in plots["data"].items()}
    assert set(contents) == {"Training loss", "Validation accuracy over penalties", "Table 4.1"}
    assert {c["encoding"]["color"]["field"] for drawn in contents.values() for c in drawn} == {"method"}
    shown = {
        name: [v for c in drawn for v in c["data"]["values"] if v["rev"] == "workspace"]
        for name, drawn in contents.items()
    }
    assert {v["method"] for values in shown.values() for v in values} == {"diffsiam_hier"}
    assert [float(v["step"]) for v in shown["Training loss"]] == [1, 2, 3]
    assert all(float(v["loss"]) > 0 for v in shown["Training loss"])
    curve = [float(v["log10_l2"]) for v in shown["Validation accuracy over penalties"]]
    assert curve == sorted(curve)
    assert len(curve) == 3


def test_an_experiment_and_a_queue_of_three_list_their_accuracies(varied: Clone, tmp_path: Path) -> None:
    clone = varied.copy(tmp_path / "repo")
    assert clone.changed() == {}
    clone.git("checkout", "--quiet", ".")
    clone.dvc("checkout")
    for episodes in (22, 23, 24):
        clone.dvc("exp", "run", "--queue", "-S", f"fewshot.episodes={episodes}", "--name", f"queued{episodes}")
    clone.dvc("exp", "run", "--run-all")

    rows = list(csv.DictReader(clone.dvc("exp", "show", "--csv").splitlines()))
    names = {"main": "20", "here": "21", "queued22": "22", "queued23": "23", "queued24": "24"}
    found = {row["Experiment"] or row["rev"]: row for row in rows}
    for name, episodes in names.items():
        assert found[name]["fewshot.episodes"] == episodes
        assert 0 < float(found[name]["1-shot.diffsiam_hier"]) < 100
        assert found[name]["linear.diffsiam_hier"] == found["main"]["linear.diffsiam_hier"]
    assert len({found[name]["2-shot.diffsiam_hier"] for name in names}) > 1

    clone.dvc("exp", "apply", "queued23")
    assert clone.changed() == {}
    assert clone.planned("all") == {}
