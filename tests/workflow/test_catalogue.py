"""What the Snakemake workflow catalogue and snakedeploy look for, and that it works as they use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.dvc.clones import Clone, working_tree

ROOT = Path(__file__).resolve().parents[2]
# As snakedeploy 0.17 writes workflow/Snakefile.
DEPLOYED = """
configfile: "config/config.yaml"

module diffsiam:
    snakefile:
        {source}
    config:
        config

use rule * from diffsiam
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return working_tree(tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("scratch"))


def deployed(clone: Clone, place: Path, source: str) -> Clone:
    for file, text in (
        ("workflow/Snakefile", DEPLOYED.format(source=source)),
        ("config/config.yaml", (clone.root / "params.yaml").read_text()),
    ):
        (place / file).parent.mkdir(parents=True)
        (place / file).write_text(text)
    return Clone(place, clone.env)


def test_the_catalogues_file_has_its_keys_and_says_what_works() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert usage["software-stack-deployment"] == {"conda": False, "apptainer": True, "apptainer+conda": False}
    assert usage["report"] is True
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme
    assert "workflow" in readme


def test_the_page_of_configuration_names_every_section_and_links_nowhere() -> None:
    page = (ROOT / "config" / "README.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert {name for cell in rows for name in re.findall(r"`(\w+)`", cell)} == set(sections)
    assert "](" not in page  # the catalogue shows it elsewhere
    assert (ROOT / "config" / "config.yaml").resolve() == ROOT / "params.yaml"


def test_as_a_module_the_clone_plans_what_the_deployed_configuration_says(clone: Clone, tmp_path: Path) -> None:
    """Through the file that includes the pipeline's own: the folder of either must not matter."""
    there = deployed(clone, tmp_path, f'"{clone.root}/workflow/Snakefile"')
    config = yaml.safe_load((tmp_path / "config" / "config.yaml").read_text()) | {"transfer": ["digits", "photos"]}
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    methods = len(config["methods"]) * len(config["seeds"])
    assert there.planned("tables")["fewshot"] == 2 * methods


def test_a_module_without_a_clone_says_that_it_needs_one(clone: Clone, tmp_path: Path) -> None:
    there = deployed(clone, tmp_path, f'gitfile("{clone.root}", path="Snakefile", ref="main")')
    done = there.run("snakemake", "-n", "tables", check=False)
    assert done.returncode != 0
    assert "is no folder. Clone it, and name the Snakefile of the clone (config/README.md)." in done.stderr
    assert "Traceback" not in done.stderr
