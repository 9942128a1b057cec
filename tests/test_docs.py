"""The docs lead somewhere: links, the navigation, and the pages of the site that no file holds."""

from __future__ import annotations

import functools
import html
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import markdown
import pytest
import yaml

from diffsiam.data.sources import DATASETS
from diffsiam.data.terms import TERMS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SCRIPTS = ROOT / "workflow" / "scripts"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def script(name: str) -> ModuleType:
    """A script that the build of the site runs; none lies where Python would find it."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def generated() -> dict[Path, str]:
    return {DOCS / path: text for path, text in script("site_pages").pages().items()}


def rendered(text: str) -> str:
    return markdown.markdown(text, extensions=["toc", "tables", "fenced_code"])


@functools.cache
def anchors(page: Path) -> set[str]:
    """Of a page's headings."""
    text = generated()[page] if page in generated() else page.read_text()
    return set(re.findall(r'\bid="([^"]+)"', rendered(text)))


def broken(page: Path, text: str) -> list[str]:
    """Links of a page to nowhere; addresses of other sites are not looked up."""
    found = []
    for link in re.findall(r'\b(?:href|src)="([^"]+)"', rendered(text)):
        path, _, anchor = html.unescape(link).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        if not (target.exists() or target in generated()) or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_every_link_of_a_page_that_is_made_leads_somewhere() -> None:
    assert {page.name for page in generated()} == {"params.md", "cli.md", "contributing.md", "changelog.md"}
    assert [(page.name, link) for page, text in generated().items() for link in broken(page, text)] == []


@pytest.mark.parametrize("link", ["gone.md", "data.md#gone", "#gone", "measured/gone.png"])
def test_a_broken_link_would_be_found(link: str) -> None:
    assert broken(DOCS / "index.md", f"# Start\n\n[this]({link}), [that](data.md#terms)") == [link]


def test_a_link_in_code_is_no_link() -> None:
    assert broken(DOCS / "index.md", "`[this](gone.md)`\n\n```text\n[that](gone.md)\n```") == []


def test_every_make_target_that_a_page_or_the_public_ci_names_exists() -> None:
    code = [span for page in PAGES for span in re.findall(r"<code[^>]*>(.*?)</code>", rendered(page.read_text()), re.S)]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    code += [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    named = {word for text in code for words in re.findall(r"^make ([a-z -]+)", text, re.M) for word in words.split()}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named >= {"table", "test", "test-fast", "lint", "docs", "merge"}
    assert named - targets == set()


def test_the_terms_of_every_data_set_are_those_of_the_model_cards() -> None:
    terms = (DOCS / "data.md").read_text().partition("\n## Terms\n")[2].partition("| weights |")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in terms.splitlines() if line.startswith("| ")]
    said = {name: (text, where) for names, text, where in rows[1:] for name in names.split(", ")}
    assert said == TERMS
    assert set(said) == set(DATASETS)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "workflow/presets").glob("*.yaml")))
def test_what_a_preset_takes_besides_figures_is_said_before_it_is_run(preset: str) -> None:
    raw = yaml.safe_load((ROOT / "workflow/presets" / f"{preset}.yaml").read_text())
    rows = [
        DATASETS[name]
        for name in dict.fromkeys([raw["pretrain"], *raw["transfer"], *raw["disentanglement"]["datasets"]])
    ]
    by_hand = [row for row in rows if any(archive.url is None for archive in row.archives)]
    said = []
    for part in ([row for row in rows if row.archives and row not in by_hand], by_hand):
        size = sum(archive.megabytes or 0 for row in part for archive in row.archives)
        said.append(f"{', '.join(row.name for row in part)}: {size} MB" if part else "nothing")
    line = next(line for line in (DOCS / "data.md").read_text().splitlines() if line.startswith(f"| `{preset}` |"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == said


def navigation(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation(inner)


def test_the_navigation_names_every_page_once() -> None:
    named = [DOCS / path for path in navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])]
    written = [path for path in DOCS.rglob("*.md") if path.parent.parent != DOCS / "measured"]
    assert sorted(named) == sorted([*written, *generated()])


def leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and path != "overrides":
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path


def test_the_reference_names_every_parameter_with_its_value_in_the_demo() -> None:
    page = generated()[DOCS / "reference" / "params.md"]
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    params = yaml.safe_load((ROOT / "workflow/presets/demo.yaml").read_text())
    assert {key for key in rows if "[]" not in key and "NAME" not in key} >= set(leaves(params, ""))
    assert rows["data.max_broken"] == (
        "| `data.max_broken` | Share of unreadable images of one split, in [0, 1], above which preparation stops. "
        "| number, at least 0, at most 1 | `0.0` | `0.0` |"
    )
    assert rows["representation.optimizer.name"].endswith("| `sgd`, `adam` | `sgd` | `sgd` |")
    assert "`probmask.attributes[].dims`" in page
    assert "`overrides.NAME.data.image_size`" in page
    assert "`datasets.NAME.path`" in page


def test_the_reference_of_commands_has_every_stage_with_its_options() -> None:
    page = generated()[DOCS / "reference" / "cli.md"]
    stages = re.findall(r'\bstage\(\s*"(\w+)"', (ROOT / "diffsiam" / "cli.py").read_text())
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == stages
    assert len(stages) > 15
    assert "--segments A-B [A-B ...]" in page.partition("## counterfactual")[2].partition("## ")[0]


def test_sections_of_a_docstring_need_no_blank_line_between_them() -> None:
    pytest.importorskip("griffe")
    separated = script("docstring_sections").separated
    assert separated("One.\n\nArgs:\n    x: it.\nReturns:\n    y.\nRaises:\n    E: z.") == (
        "One.\n\nArgs:\n    x: it.\n\nReturns:\n    y.\n\nRaises:\n    E: z."
    )


def build(project: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does; with --quiet mkdocs would count no warning, and pass."""
    command = [sys.executable, "-m", "mkdocs", "build"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_site_is_built_strictly_and_a_broken_link_fails(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    for folder in ("docs", "workflow", "diffsiam"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / file, tmp_path)
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert "fewshot.episodes" in (site / "reference" / "params" / "index.html").read_text()
    assert "diffsiam.evaluation.fewshot.episodes" in (site / "reference" / "api" / "index.html").read_text()
    with (tmp_path / "docs" / "data.md").open("a") as page:
        page.write("\n[this](gone.md)\n")
    done = build(tmp_path)
    assert done.returncode == 1
    assert "'gone.md'" in done.stderr


def test_what_is_by_hand_where_a_library_might_serve_is_there_and_has_a_reason() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Library or ours")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"][2:]
    named = set()
    for ours, library, why in rows:
        assert library, ours
        assert why, ours
        folder = Path()
        for file in map(Path, re.findall(r"`([\w/]+\.py)`", ours)):  # a name alone is in the folder of the one before
            folder = file.parent if len(file.parts) > 1 else folder
            assert (ROOT / "diffsiam" / folder / file.name).is_file(), ours
            named.add(folder / file.name)
    assert Path("evaluation/fewshot_kernels.py") in named
