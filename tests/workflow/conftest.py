"""A folder that Snakemake plans in: this checkout's rules and code, and parameters of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffsiam import params

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test, with the demo's params.yaml, whatever stands in the checkout's."""
    for name in ("Snakefile", "workflow", "diffsiam", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "workflow" / "presets" / "demo.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(params.VARIABLE, raising=False)
    return tmp_path
