"""Containers, where they are asked for: jobs name this version's image and run the checkout's code. Every other test
here runs without one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT
from tests.workflow.plans import snakemake

IMAGE = f"resources/diffsiam-{metadata.version('diffsiam')}.sif"
# Stands for apptainer: notes image and environment of a job, and runs its command on the host.
APPTAINER = f"""#!{sys.executable}
import os, sys
if sys.argv[1] == "--version":
    print("apptainer version 1.3.4")
else:
    at = sys.argv.index("-c")
    with open("called.txt", "a") as f:
        f.write(f"{{sys.argv[at - 2]}} {{os.environ['APPTAINERENV_PYTHONPATH']}}\\n")
    os.execvp(sys.argv[at - 1], sys.argv[at - 1:])
"""
TARGET = "results/data/digits/meta.json"


def test_with_apptainer_a_job_runs_in_the_image_of_this_version_by_the_checkouts_code(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = project / "bin" / "apptainer"
    tool.parent.mkdir()
    tool.write_text(APPTAINER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    done = snakemake("--cores", "1", "--software-deployment-method", "apptainer", "--", TARGET)
    assert done.returncode == 0, done.stderr
    assert (project / TARGET).exists()
    (call,) = (project / "called.txt").read_text().splitlines()
    image, code = call.split()
    assert os.path.relpath(image, project) == IMAGE
    assert (Path(code) / "diffsiam").resolve() == ROOT / "diffsiam"


def test_make_builds_that_image_from_the_containerfile(tmp_path: Path) -> None:
    said = subprocess.run(
        ["make", "--dry-run", "ENGINE=podman", "container"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "podman build --file Containerfile" in said
    assert f"apptainer build --force {IMAGE} docker-archive:" in said
    assert (ROOT / "Containerfile").is_file()
