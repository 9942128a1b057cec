"""workflow/scripts/merge.sh refuses parts that do not belong together; tables made of parts: tests/test_measured.py."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
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
    done = subprocess.run(
        ["bash", ROOT / "workflow" / "scripts" / "merge.sh", folder], capture_output=True, text=True, timeout=120
    )
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


def test_a_diffusion_model_of_its_own_is_no_difference(folder: Path) -> None:
    part(folder, "one.tar.xz", "results/diffusion/digits/training.json", "{}")
    part(folder, "two.tar.xz", "results/diffusion/digits/training.json", "[]")
    assert "training.json" not in merge(folder)
