"""workflow/scripts/merge.sh refuses parts that do not belong together; tables made of parts: tests/test_measured.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(ROOT / "workflow" / "presets" / "demo.yaml", folder / "params.yaml")
    return folder


def part(folder: Path, name: str, file: str, text: str) -> None:
    """An archive of one file."""
    source = folder.parent / "source"
    source.write_text(text)
    with tarfile.open(folder / name, "w:xz") as archive:
        archive.add(source, file)


def merge(folder: Path) -> str:
    """What it says when it refuses; nothing may be left behind."""
    before = sorted(folder.iterdir())
    command = ["bash", ROOT / "workflow" / "scripts" / "merge.sh", folder]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert sorted(folder.iterdir()) == before
    return done.stderr


def test_a_folder_without_params_or_parts_is_refused(folder: Path) -> None:
    assert "no part in" in merge(folder)
    (folder / "params.yaml").unlink()
    assert "no params.yaml in" in merge(folder)


def test_parts_that_differ_in_a_file_that_both_have_are_refused(folder: Path) -> None:
    part(folder, "one.tar.xz", "results/data/digits/meta.json", "{}")
    part(folder, "two.tar.xz", "results/data/digits/meta.json", "[]")
    assert "results/data/digits/meta.json in two.tar.xz" in merge(folder)


@pytest.mark.parametrize("own", ["diffusion/digits/training.json", "metrics.json"])
def test_what_each_part_has_of_its_own_may_differ_and_results_that_no_part_has_are_named(
    folder: Path, own: str
) -> None:
    part(folder, "one.tar.xz", f"results/{own}", "{}")
    part(folder, "two.tar.xz", f"results/{own}", "[]")
    said = merge(folder)
    assert "simsiam/seed0/digits.json" in said
    assert own not in said
