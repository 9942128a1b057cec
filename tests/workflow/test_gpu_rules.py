"""Rules that compute on a GPU can be told, together, how many jobs may share it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.workflow.plans import snakemake


def test_gpu_jobs_counts_every_job_that_is_told_a_device_and_no_other(project: Path) -> None:
    done = snakemake("-n", "-p", "--cores", "1", "all", "figures", "numbers")
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"^(?:local)?rule (\S+):\n(.*?)(?=^\[|^Job stats)", done.stdout + done.stderr, re.M | re.S)
    counted = {name for name, text in jobs if re.search(r"resources:.*\bgpu_jobs=1\b", text)}
    told = {name for name, text in jobs if '"device": "auto"' in text}
    assert counted == told
    assert {"diffusion", "representation_simsiam", "features", "generate_numbers"} < told
    assert not {"data", "linear", "fewshot", "table4_1"} & told


def test_the_diffusion_model_goes_before_other_trainings_and_these_before_evaluations(project: Path) -> None:
    done = snakemake("-n", "--cores", "1", "tables")
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"^(?:local)?rule (\S+):\n(.*?)(?=^\[|^Job stats)", done.stdout + done.stderr, re.M | re.S)
    priority = {name: int((re.search(r"priority: (\d+)", text) or [0, 0])[1]) for name, text in jobs}
    assert priority["diffusion"] > priority["representation_simsiam"] > priority["features"]
    assert priority["representation_simsiam"] == priority["representation_diffsiam_hier"]
    assert {priority[name] for name in ("features", "linear", "fewshot")} == {0}
