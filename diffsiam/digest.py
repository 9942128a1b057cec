"""What a stage's code is: the package modules that it imports, and a digest of their sources.

Rules record the digest among their params, so an edit to ``evaluation/fewshot.py`` re-runs the few-shot jobs and
what follows, and no training. The digest is taken over text without comments, docstrings and blank lines: those
never re-run anything, and every Python version gives the same value. Standard library only: Snakemake computes it
whenever it reads the Snakefile.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

# Where each stage's work is done: the module whose imports, followed to the end, make up the stage's code.
STAGE_MODULES = {
    "data": "diffsiam.data.prepare",
    "diffusion": "diffsiam.training.diffusion",
    "representation": "diffsiam.training.representation",
    "frozen": "diffsiam.evaluation.frozen",
    "features": "diffsiam.evaluation.features",
    "linear": "diffsiam.evaluation.linear",
    "fewshot": "diffsiam.evaluation.fewshot",
    "probmask": "diffsiam.evaluation.probmask",
    "heads": "diffsiam.evaluation.heads",
    "disentanglement": "diffsiam.evaluation.disentanglement",
    "sheets": "diffsiam.evaluation.sheets",
    "generation": "diffsiam.generation.figures",
    "swaps": "diffsiam.generation.swaps",
    "attributes": "diffsiam.data.scene_attributes",
    "figures": "diffsiam.report.captions",  # which stands on diffsiam.report.figures
    "numbers": "diffsiam.report.numbers",
    "disentangled": "diffsiam.report.disentangled",
    "curve": "diffsiam.report.curve",
    "search": "diffsiam.report.searched",
    "page": "diffsiam.report.page",
    "provenance": "diffsiam.report.provenance",
    "heads_table": "diffsiam.report.attributes",
    "tables": "diffsiam.report.summary",  # which stands on diffsiam.report.tables
}

# Not part of a result: parameters are recorded by value, errors are messages, and this module only watches.
_EXCLUDED = {"diffsiam", "diffsiam.params", "diffsiam.schema", "diffsiam.errors", "diffsiam.digest"}


def modules(stage: str) -> tuple[str, ...]:
    """Names of the package modules that ``stage`` imports, directly or not, sorted."""
    found: set[str] = set()
    todo = [STAGE_MODULES[stage]]
    while todo:
        name = todo.pop()
        if name not in found and name not in _EXCLUDED:
            found.add(name)
            todo += _read(name)[0]
    return tuple(sorted(n for n in found if source(n).name != "__init__.py"))


@functools.cache
def digest(stage: str) -> str:
    """16 hexadecimal digits that change with the code of ``stage`` and with nothing else."""
    total = hashlib.sha256()
    for name in modules(stage):
        total.update(f"{name}\n{_read(name)[1]}\n".encode())
    return total.hexdigest()[:16]


def source(module: str) -> Path:
    """The file of a package module."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _read(module: str) -> tuple[tuple[str, ...], str]:
    """Package modules named by any import statement of ``module``, inside functions too, and its normalised text."""
    text, names = source(module).read_text(encoding="utf-8"), set()
    tree = ast.parse(text)
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = sorted(n for n in names if n.split(".")[0] == "diffsiam" and source(n).exists())
    return tuple(found), normalized(text, tree)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and every statement below it; expressions, which are most of a tree, are left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _statements(child)


# A string or a comment. Python's own tokenizer, which a test compares this with, takes a second for the whole package,
# every time that Snakemake starts.
_TOKEN = re.compile(r"""('{3}|\"{3})(?:[^\\]|\\.)*?\1|(['"])(?:[^\\\n]|\\.)*?\2|\#[^\n]*""", re.DOTALL)


def normalized(text: str, tree: ast.Module | None = None) -> str:
    """``text`` without comments, docstrings and blank lines; what stands inside other strings is kept as it is."""
    lines = text.split("\n")
    inside: set[int] = set()  # lines, counted from 0, that end within a string
    row = at = 0
    for token in _TOKEN.finditer(text):
        row, at = row + text.count("\n", at, token.start()), token.start()
        if token[0].startswith("#"):
            lines[row] = lines[row][: at - text.rfind("\n", 0, at) - 1]
        else:
            inside |= set(range(row, row + token[0].count("\n")))
    for node in _statements(tree or ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if first is not None and is_text and isinstance(first.value.value, str):  # type: ignore[attr-defined]
                for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[row] = ""
                    inside.discard(row)
    kept = (line if row in inside else line.rstrip() for row, line in enumerate(lines) if line.strip() or row in inside)
    return "\n".join(kept)
