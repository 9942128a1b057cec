"""How `make test` divides the tests between its workers, seen in a folder of tests that note who ran them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("dvc/test_dvc1.py", "dvc/test_dvc2.py", "slurm/test_slurm1.py", "slurm/test_slurm2.py")
FILES = ("data/test_a.py", "data/test_b.py", *SHARED, "test_c.py")
NOTE = """
import os, pathlib, time
import pytest
@pytest.mark.parametrize("i", range(4))
def test_it(i):
    with open("{notes}", "a") as f:
        f.write("{file} " + os.environ["PYTEST_XDIST_WORKER"] + "\\n")
    time.sleep(0.05)
"""


def test_the_slowest_folders_begin_first_on_a_worker_each_and_no_file_is_divided(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    notes = tmp_path / "notes"
    for file in FILES:
        path = tmp_path / "tests" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOTE.format(notes=notes, file=file))
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "pytest.ini").touch()
    options = re.search(r"^TESTS := \S+/pytest (.+?) +#", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert options
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", *options[1].split(), "tests"]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)

    ran = [line.split() for line in notes.read_text().splitlines()]
    assert len(ran) == len(FILES) * 4
    who = {file: {worker for name, worker in ran if name == file} for file, _ in ran}
    assert all(len(workers) == 1 for workers in who.values())
    assert len(who["slurm/test_slurm1.py"] | who["slurm/test_slurm2.py"]) == 1
    assert len(who["dvc/test_dvc1.py"] | who["dvc/test_dvc2.py"]) == 1
    assert who["slurm/test_slurm1.py"] != who["dvc/test_dvc1.py"]
    for worker in ("gw0", "gw1"):
        assert next(name for name, by in ran if by == worker).startswith(("slurm/", "dvc/"))
