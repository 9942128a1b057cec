"""`snakemake -n` refuses what cannot work: one message, exit status 2, nothing planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tests.workflow.plans import snakemake


def refused(*arguments: str) -> list[str]:
    """The lines of a plan's one message, less what Snakemake says of its profile."""
    done = snakemake("-n", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if not line.startswith("Using ")]


def test_a_plan_refuses_a_contradiction(project: Path) -> None:
    changed = yaml.safe_load((project / "params.yaml").read_text())
    changed["probmask"]["attributes"][3]["dims"] = 300
    (project / "params.yaml").write_text(yaml.safe_dump(changed))
    (line,) = refused("tables")
    assert line.startswith("params: probmask.attributes.3.dims: met 300")


def test_a_plan_refuses_a_key_that_stands_twice_wherever_it_stands(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text + "seeds: [7]\n")
    (line,) = refused("tables")
    lines = [number for number, each in enumerate(text.splitlines(), start=1) if each.startswith("seeds:")]
    assert line.startswith(
        f"params.yaml: seeds: stands there 2 times, in lines {lines[0]} and {text.count(chr(10)) + 1}"
    )
    (project / "params.yaml").write_text(text)
    (project / "more.yaml").write_text("linear:\n  penalties: 3\n  penalties: 4\n")
    (line,) = refused("tables", "--configfile", "more.yaml")
    assert "more.yaml: linear.penalties: stands there 2 times, in lines 2 and 3" in line


def test_a_preset_that_configfile_names_is_taken_as_it_is_and_a_few_keys_extend_params(project: Path) -> None:
    demo = (project / "params.yaml").read_text()
    preset = project / "workflow/presets/celeba-gpu.yaml"
    assert yaml.safe_load(demo)["overrides"].keys() - yaml.safe_load(preset.read_text())["overrides"].keys()
    (project / "few.yaml").write_text("seeds: [3]\nlinear: {penalties: 7}\n")

    def taken(*arguments: str) -> str:
        done = snakemake("-n", *arguments, "--", "results/data/digits/meta.json")
        assert done.returncode == 0, done.stderr
        return re.findall(r"Config MD5: (\w+)", done.stdout + done.stderr)[0]

    extended, given = (taken("--configfile", str(file)) for file in ("few.yaml", preset))
    (project / "params.yaml").write_text(preset.read_text())
    assert given == taken()
    raw = yaml.safe_load(demo) | {"seeds": [3]}
    (project / "params.yaml").write_text(yaml.safe_dump(raw | {"linear": raw["linear"] | {"penalties": 7}}))
    assert extended == taken()


def test_a_plan_names_file_and_line_of_what_is_not_yaml(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text + "extra: [1\nmore: }\n")
    (line,) = refused("tables")
    assert line.startswith(f"params.yaml, line {len(text.splitlines()) + 2}, column ")
    (project / "params.yaml").write_text(text, encoding="utf-16")
    (line,) = refused("tables")
    assert line.startswith("params.yaml, line 1: not UTF-8 text")


def test_a_plan_refuses_images_without_labels_in_the_tables(project: Path) -> None:
    changed = yaml.safe_load((project / "params.yaml").read_text())
    (project / "birds").mkdir()
    Image.new("RGB", (8, 8)).save(project / "birds" / "1.png")
    changed |= {"datasets": {"birds": {"path": "birds"}}, "transfer": ["digits", "birds"]}
    (project / "params.yaml").write_text(yaml.safe_dump(changed))
    (line,) = refused("tables")
    assert line.startswith("params: transfer: birds: no classes to tell apart.")


def test_a_plan_begins_with_all_that_is_not_here_yet(project: Path) -> None:
    changed = yaml.safe_load((project / "params.yaml").read_text())
    changed |= {"datasets": {"birds": {"path": "birds"}}, "pretrain": "birds", "transfer": ["Cars", "DTD", "digits"]}
    (project / "params.yaml").write_text(yaml.safe_dump(changed))
    done = snakemake("-n", "data_sets")
    assert done.returncode == 0, done.stderr
    said = done.stderr.partition("Not here yet, and needed:\n")[2].splitlines()
    assert [line.strip().partition(":")[0] for line in said[:3]] == [
        "Cars, about 1958 MB",
        "DTD, about 625 MB",
        "birds",
    ]
    assert "place resources/stanford_cars/car_devkit.tgz, " in said[0]
    assert not said[3:] or not said[3].startswith("  ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_plan_refuses_cuda_where_jobs_run_on_a_machine_without_and_not_on_a_login_node(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("device: auto", "device: cuda"))
    (line,) = refused("tables")
    assert line.startswith("runtime.device: cuda was asked for")
    (project / "params.yaml").write_text(text.replace("graph: auto", "graph: true"))
    assert refused("tables")[0].startswith("runtime.graph: true was asked for, but jobs run on cpu")
    done = snakemake("-n", "tables", "--executor", "slurm", "--jobs", "2")
    assert done.returncode == 0, done.stderr
