"""What says who may be cited, under which version and which licence says the same everywhere."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # of the text that apache.org publishes


def test_the_citation_holds_what_its_format_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert all(isinstance(CITATION[key], str) and CITATION[key] for key in ("message", "title", "version"))
    assert CITATION["authors"]


def test_the_citation_and_the_package_are_one_version_under_one_licence() -> None:
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"] == "Apache-2.0"


def test_the_licence_is_apaches_own_text() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == PROJECT["version"]


def test_the_citation_names_the_thesis() -> None:
    (thesis,) = [entry for entry in CITATION["references"] if entry["type"] == "thesis"]
    assert thesis["title"] in PROJECT["description"]
    assert thesis["title"] in (ROOT / "README.md").read_text()
