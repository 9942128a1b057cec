"""Imports run one way, and every source file keeps the rules that the digest and the layers rely on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import diffsiam

PACKAGE = Path(__file__).resolve().parents[1] / "diffsiam"
ORDER = [  # a module imports from its own layer and from those above it in this list
    {"errors"},
    {"schema", "data.sources", "training.methods"},  # the tables, against which parameters are checked
    {"search", "sections"},
    {"checks"},
    {"params", "digest"},
    {"runtime", "graph"},
    {"data", "records", "cluster", "weights", "stages", "stopping"},
    {"models"},
    {"diffusion"},
    {"training"},
    {"evaluation", "generation"},
    {"report"},
    {"api", "publish"},
    {"commands"},
    {"cli"},
]
API_SHELL = [  # the statements of the package's own file
    "from typing import TYPE_CHECKING, Any",
    "if TYPE_CHECKING:\n    from diffsiam.api import counterfactual, evaluate, features, invert, load_diffusion, "
    "load_encoder, load_representation, manipulate",
    f"__all__ = {diffsiam.__all__}",
    "def __getattr__",
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in FILES}


def part(module: str) -> str:
    """``diffsiam.data.pixels`` -> ``data``; a module that is a layer of its own is named whole."""
    name = module.removeprefix("diffsiam.")
    return name if name in LEVEL else name.split(".")[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str) -> set[str]:
    """Modules of the package that ``source`` imports anywhere, ``from diffsiam.x import y`` as ``diffsiam.x.y`` where
    that is a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write the whole name; the digest follows no relative import"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if module == "diffsiam" or name in MODULES} or {module}
    return {name for name in names if name.startswith("diffsiam.")}


def back_edges(module: str, source: str) -> list[str]:
    """What ``module`` imports from layers that come after its own."""
    level = LEVEL[part(module)]
    return [name for name in sorted(imported(source)) if LEVEL[part(name)] > level]


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != PACKAGE or f.stem != "__init__"], ids=name_of)
def test_module_imports_nothing_from_a_later_layer(path: Path) -> None:
    module = name_of(path)
    assert part(module) in LEVEL, f"{module} has no place in the order of layers"
    assert back_edges(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("diffsiam.data.pixels", "from diffsiam.models import unet", ["diffsiam.models.unet"]),
        ("diffsiam.checks", "from diffsiam.data import sources", []),
        ("diffsiam.checks", "from diffsiam.data import sources, pixels", ["diffsiam.data.pixels"]),
        ("diffsiam.data.sources", "from diffsiam.data.readers import Split", ["diffsiam.data.readers"]),
        ("diffsiam.runtime", "def f():\n    from diffsiam import cli, params", ["diffsiam.cli"]),
        ("diffsiam.training.loop", "import diffsiam.report.tables", ["diffsiam.report.tables"]),
        ("diffsiam.cli", "from diffsiam.report import tables", []),
        ("diffsiam.evaluation.knn", "from diffsiam.generation import x", []),
    ],
)
def test_a_back_edge_would_be_found(module: str, source: str, expected: list[str]) -> None:
    assert back_edges(module, source) == expected


def test_packages_are_empty_shells() -> None:
    """The digest leaves ``__init__`` out, so nothing may stand there; the package's own has the API's names."""
    inits = [f for f in FILES if f.stem == "__init__"]
    assert len(inits) > 5
    for path in inits:
        statements = ast.parse(path.read_text()).body
        if path.parent == PACKAGE:
            assert [ast.unparse(s).split("(")[0] for s in statements[1:]] == API_SHELL
            assert imported(path.read_text()) <= {"diffsiam.api", *(f"diffsiam.api.{n}" for n in diffsiam.__all__)}
            continue
        assert all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in statements), path


def test_no_module_imports_by_name_at_run_time() -> None:
    """The digest could not follow that."""
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        words = {n.id for n in nodes if isinstance(n, ast.Name)} | {
            n.attr for n in nodes if isinstance(n, ast.Attribute)
        }
        assert not words & {"import_module", "__import__", "run_path", "run_module", "exec"}, path
