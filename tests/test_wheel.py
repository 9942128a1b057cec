"""The wheel: what it holds, and that it works where there is no clone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generation import tiny_guided
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip builds it, by the backend that pyproject.toml names."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl")
    return path


def below(folder: str, pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}


def test_the_wheel_holds_the_package_and_what_it_reads_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    data = below("workflow/schemas", "*.yaml") | below("workflow/presets", "*.yaml") | below("workflow/reference", "*")
    data |= below("workflow/report", "*")
    assert len(data) > 8
    assert names == below("diffsiam", "*.py") | {"diffsiam/py.typed"} | {f"diffsiam/{name}" for name in data}
    assert len(licences) == 1


def test_outside_the_clone_the_api_and_the_commands_work_on_a_folder_of_results(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    tiny_guided.results(tmp_path)
    Image.fromarray(tiny.images()[0]).save(tmp_path / "a.png")
    few = json.dumps({"generation": {"steps": 2}})
    code = f"""
import diffsiam
from diffsiam import cli, commands, schema
trained = diffsiam.load_representation("results", "sprites", params={few!r})
print("z", tuple(diffsiam.invert(trained, "a.png")[0].shape))
options = ["--params", "demo", "--params", {few!r}, "--pretrain", "sprites", "--out", "strip.png"]
print("status", cli.main(["counterfactual", "a.png", "a.png", "--segments", "0-2", *options]))
print("schema", schema.SCHEMA)
print("thesis", *(commands._reference(f"thesis_table{{table}}.csv").is_file() for table in ("4_1", "4_2")))
page = ["page", "--results", "results", "--pretrain", "sprites", "--out", "results/index.html", "--params", "demo"]
print("page", cli.main(page))
"""
    (tmp_path / "results/summary.md").write_text("**Methods side by side.**\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[:2] == [f"z (1, {tiny_guided.DIM})", "status 0"]
    assert said[2] == f"schema {tmp_path / 'site/diffsiam/workflow/schemas/params.schema.yaml'}"
    assert said[3:] == ["thesis True True", "page 0"]
    assert "The thesis claims" in (tmp_path / "results/index.html").read_text()
    assert np.asarray(Image.open(tmp_path / "strip.png")).ndim == 3


def test_the_lock_pins_every_package_by_hash_and_names_no_registry() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==\S+(.*(?:\n {4}.*)*)", text, re.MULTILINE)
    assert len(pinned) > 150
    assert [name for name, rest in pinned if "--hash=sha256:" not in rest] == []
    assert not re.search(r"https?://|index-url|find-links|file:", text)
    left = re.sub(r"^([A-Za-z0-9_.-]+)==\S+(.*(?:\n {4}.*)*)|^#.*", "", text, flags=re.MULTILINE)
    assert left.strip() == ""
