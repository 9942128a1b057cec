"""Rules that compute on a GPU can be told, together, how many jobs may share it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_gpu_jobs_counts_every_job_that_is_told_a_device_and_no_other(tmp_path: Path) -> None:
    for name in ("Snakefile", "workflow", "diffsiam", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "params.yaml").symlink_to(ROOT / "workflow" / "presets" / "demo.yaml")
    command = [sys.executable, "-m", "snakemake", "-n", "-p", "--cores", "1", "all", "figures", "numbers"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"^(?:local)?rule (\S+):\n(.*?)(?=^\[|^Job stats)", done.stdout + done.stderr, re.M | re.S)
    counted = {name for name, text in jobs if re.search(r"resources:.*\bgpu_jobs=1\b", text)}
    told = {name for name, text in jobs if '"device": "auto"' in text}
    assert counted == told
    assert {"diffusion", "representation_simsiam", "features", "generate_numbers"} < told
    assert not {"data", "linear", "fewshot", "table4_1"} & told
