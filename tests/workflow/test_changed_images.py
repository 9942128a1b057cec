"""Changed images are planned anew, and a source that was moved or is away is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.dvc.clones import Clone, merged, working_tree
from tests.workflow.test_edits import finish

pytestmark = pytest.mark.slow
OWN = {"transfer": ["DTD", "birds"], "pretrain": "Pets", "seeds": [0], "methods": ["simsiam"]}
TABLES = {"table4_1", "table4_2", "summary", "provenance", "page", "metrics"}
AFTER_DTD = {"data", "features", "linear", "fewshot"} | TABLES


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def once_finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A run on a folder of one's own, of empty files. Its pretraining set was not there yet when it was planned."""
    clone = working_tree(tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("scratch"))
    clone.edit("datasets", {"birds": {"path": "birds"}})
    settings(clone, **OWN)
    for name in ("finch/1", "finch/2", "owl/1", "owl/2"):
        image(clone.root / f"birds/{name}.png")
    for split, name in (("train", "dotted"), ("train", "woven"), ("test", "dotted"), ("test", "woven")):
        image(clone.root / "resources/DTD" / split / name / "1.png")
    finish(clone, "all", "data_sets")
    return clone


@pytest.fixture
def clone(once_finished: Clone, tmp_path: Path) -> Clone:
    return once_finished.copy(tmp_path / "repo")


def settings(clone: Clone, **sections: Any) -> None:
    path = clone.root / "params.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), sections), sort_keys=False))


def planned(clone: Clone) -> set[str]:
    return set(clone.planned("all"))


def test_a_class_added_to_ones_folder_prepares_and_evaluates_it_anew(clone: Clone) -> None:
    assert planned(clone) == set()
    for split in ("train", "test"):
        image(clone.root / "resources/DTD" / split / "striped" / "1.png")
    assert planned(clone) == AFTER_DTD
    assert planned(clone) == AFTER_DTD  # the plan itself settles nothing
    shutil.rmtree(clone.root / "results/data/DTD")
    assert planned(clone) == AFTER_DTD
    for split in ("train", "test"):
        shutil.rmtree(clone.root / "resources/DTD" / split / "striped")
    assert planned(clone) == set()


def test_a_removed_data_set_is_named_with_what_brings_it_back(clone: Clone) -> None:
    """Made anew at once, all trainings would follow, also where nothing changed."""
    assert "Not here any more" not in clone.run("snakemake", "-n", "all").stderr
    shutil.rmtree(clone.root / "results/data/DTD")
    said = clone.run("snakemake", "-n", "all").stderr
    assert "Not here any more: results/data/DTD/meta.json." in said
    assert "data_sets" in said
    assert clone.planned("data_sets") == {"data": 1, "data_sets": 1}


def test_a_moved_and_an_absent_folder_rerun_nothing_and_a_change_on_the_way_is_seen(clone: Clone) -> None:
    (clone.root / "resources").rename(clone.root / "scratch")
    assert planned(clone) == set()
    settings(clone, data={"root": str(clone.root / "scratch")})
    assert planned(clone) == set()
    (clone.root / "scratch/DTD/train/woven/1.png").unlink()
    image(clone.root / "scratch/DTD/train/woven/2.png")
    assert planned(clone) == AFTER_DTD


def test_images_of_ones_own_by_a_name_may_move_and_a_change_of_them_is_seen(clone: Clone) -> None:
    (clone.root / "birds").rename(clone.root / "wings")
    clone.edit("datasets", {"birds": {"path": str(clone.root / "wings")}})
    assert planned(clone) == set()
    image(clone.root / "wings/owl/3.png")
    assert clone.planned("all")["data"] == 1


def test_a_download_reruns_nothing_and_an_edit_of_it_does(clone: Clone) -> None:
    for part in ("images", "annotations"):
        (clone.root / "resources/oxford-iiit-pet" / part).mkdir(parents=True)
    (clone.root / "resources/oxford-iiit-pet/images/one.jpg").touch()
    assert planned(clone) == set()
    (clone.root / "resources/oxford-iiit-pet/images/two.jpg").touch()
    assert planned(clone) == AFTER_DTD | {"representation_simsiam"}


def test_other_weights_in_the_place_that_a_diffusion_model_is_fetched_from_are_fetched(clone: Clone) -> None:
    weights = clone.root / "mine" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir()
    weights.touch()
    settings(clone, methods=["pdae"], diffusion={"source": "fetch", "fetch": {"location": str(weights.parent)}})
    finish(clone, "all")
    assert planned(clone) == set()
    os.utime(weights, (2e9, 2e9))
    assert planned(clone) == AFTER_DTD - {"data"} | {"diffusion", "representation_pdae"}


def test_jobs_take_no_fingerprint(clone: Clone) -> None:
    """They may see another machine's files, or none."""
    memory = clone.root / "results/sources/data/DTD.json"
    before = json.loads(memory.read_text())
    image(clone.root / "resources/DTD/train/dotted/2.png")
    as_planned = {"data/DTD": before["seen"], "data/Pets": "downloaded", "data/birds": None}
    clone.run("snakemake", "--mode", "subprocess", "-n", "data_sets", DIFFSIAM_SEEN=json.dumps(as_planned))
    assert json.loads(memory.read_text()) == before
    assert planned(clone) == AFTER_DTD
    assert json.loads(memory.read_text()) != before
