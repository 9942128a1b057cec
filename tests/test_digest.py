"""The digest changes with a stage's code, and with nothing else, under every Python."""

from __future__ import annotations

import ast
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from diffsiam import digest

PACKAGE = Path(digest.__file__).parent
STAGES = sorted(digest.STAGE_MODULES)
OTHER_PYTHONS = ["3.12", "3.13"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's sources that no test edits."""
    return Path(
        shutil.copytree(
            PACKAGE, tmp_path_factory.mktemp("original") / "diffsiam", ignore=shutil.ignore_patterns("__pycache__")
        )
    )


@pytest.fixture(scope="module")
def before(original: Path) -> dict[str, str]:
    return digests(original)


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    return Path(shutil.copytree(original, tmp_path / "diffsiam"))


def digests(package: Path) -> dict[str, str]:
    """Digest of every stage by the copy's own module, which knows nothing of the installed one."""
    module = runpy.run_path(str(package / "digest.py"))
    return {stage: module["digest"](stage) for stage in STAGES}


def changed(package: Path, before: dict[str, str]) -> set[str]:
    after = digests(package)
    return {stage for stage in STAGES if before[stage] != after[stage]}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_comments_docstrings_and_blank_lines_of_any_module_change_no_digest(
    package: Path, before: dict[str, str]
) -> None:
    count = 0
    for path in package.rglob("*.py"):
        lines = path.read_text().splitlines()
        if not lines or not lines[0].startswith('"""'):
            continue
        count += 1
        lines[0] = '"""Something else. ' + lines[0][3:]
        out = ["# a new head", "", ""]
        for line in lines:
            out.append(line)
            if re.fullmatch(r"from __future__ import annotations|import \w+", line):
                out += ["", "# between imports", "    # and indented  "]
            elif line.endswith(("return out", "return model")):
                out[-1] += "  # behind code"
        path.write_text("\n".join([*out, "", "# a new tail"]) + "\n\n")
    assert count > 20
    assert changed(package, before) == set()


def test_a_functions_docstring_changes_no_digest(package: Path, before: dict[str, str]) -> None:
    edit(package / "diffusion" / "schedule.py", "Sample q(x_t | x_0)", "Draw a noisy image,\n\n        q(x_t | x_0)")
    assert changed(package, before) == set()


def closure(start: str) -> set[str]:
    """Files that a module's import lines lead to, found by pattern."""
    found: set[Path] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        path = PACKAGE.parent / (name.replace(".", "/") + ".py")
        if not path.is_file() or path in found:
            continue
        found.add(path)
        for module, names in re.findall(r"^\s*from (diffsiam[\w.]*) import (\([^)]*\)|[^\n]*)", path.read_text(), re.M):
            todo += [module, *(f"{module}.{word}" for word in re.findall(r"\w+", names))]
    return {str(path.relative_to(PACKAGE)) for path in found}


@pytest.mark.parametrize(
    "edited",
    ["evaluation/fewshot.py", "evaluation/linear.py", "training/loop.py", "models/segments.py", "data/pixels.py",
     "report/tables.py", "runtime.py"],
)  # fmt: skip
def test_an_edit_of_code_changes_the_stages_that_import_it_and_no_other(
    package: Path, before: dict[str, str], edited: str
) -> None:
    with (package / edited).open("a") as f:
        f.write("\nEXTRA = 1\n")
    expected = {stage for stage, module in digest.STAGE_MODULES.items() if edited in closure(module)}
    assert changed(package, before) == expected
    assert expected
    if edited == "evaluation/fewshot.py":
        assert expected == {"fewshot"}


def test_params_errors_and_the_digest_itself_belong_to_no_stage(package: Path, before: dict[str, str]) -> None:
    """Parameters are recorded by value, errors are messages, the digest only watches."""
    for name in ("params.py", "errors.py"):
        with (package / name).open("a") as f:
            f.write("\nEXTRA = 1\n")
    assert changed(package, before) == set()
    for stage in STAGES:
        assert not {"diffsiam.params", "diffsiam.errors", "diffsiam.digest"} & set(digest.modules(stage))


def test_evaluation_does_not_depend_on_training_nor_training_on_evaluation() -> None:
    for stage in ("linear", "fewshot", "tables"):
        names = [m for m in digest.modules(stage) if m.startswith(("diffsiam.training", "diffsiam.models"))]
        assert set(names) <= {"diffsiam.training.methods"}  # the tables' row names
    for stage in ("data", "diffusion", "representation"):
        assert not [m for m in digest.modules(stage) if m.startswith(("diffsiam.evaluation", "diffsiam.report"))]


TEXT = '''"""Module."""

import os  # why


class A:
    """Doc
    over lines."""

    x = "# not a comment"

    def f(self):
        "plain doc"
        # a remark
        y = f"""template {self.x}  # kept

        with a blank line and space at an end   
        """  # not kept

        """an expression, no docstring"""
        return y
'''


STRINGS = r"""
a = 'it\'s # no comment', "\\"  # a comment with a ' and a "
b = r'\'  '#' rb"\"" # another: '''
c = '''one " and \''' and # inside

too'''  # after "
d = 'over \
  lines # still'; e = ""  # "" and ''''''
f = f"{a['#']} # {b!r:>{5}}"; g = ''''#'''  # such
"""


def test_normalized_by_hand() -> None:
    assert digest.normalized(TEXT).split("\n") == [
        "import os",
        "class A:",
        '    x = "# not a comment"',
        "    def f(self):",
        '        y = f"""template {self.x}  # kept',
        "",
        "        with a blank line and space at an end   ",
        '        """',
        '        """an expression, no docstring"""',
        "        return y",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a blank line", "a blank line\n"),  # a line more in a template
        ("at an end   \n", "at an end\n"),  # space at the end of a template's line
        ("# not a comment", "# still no comment"),
        ("import os", "import sys"),
        ("        return y", "    return y"),  # out of the method
    ],
)
def test_edits_inside_strings_and_of_indentation_are_edits(old: str, new: str) -> None:
    assert digest.normalized(TEXT.replace(old, new)) != digest.normalized(TEXT)


def by_the_tokenizer(text: str) -> str:
    """What `normalized` gives, its strings and comments found by Python's own tokenizer."""
    lines, inside, opened = text.split("\n"), set[int](), list[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind, row, column = tokenize.tok_name[token.type], token.start[0] - 1, token.start[1]
        if kind == "COMMENT":
            lines[row] = lines[row][:column]
        elif kind.endswith("STRING_START"):  # f-strings are many tokens from Python 3.12 on
            opened.append(row)
        elif kind == "STRING" or kind.endswith("STRING_END"):
            inside |= set(range(row if kind == "STRING" else opened.pop(), token.end[0] - 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                for row in range(first.lineno - 1, first.end_lineno or 0):
                    lines[row] = ""
                    inside.discard(row)
    kept = (line if row in inside else line.rstrip() for row, line in enumerate(lines) if line.strip() or row in inside)
    return "\n".join(kept)


def test_strings_and_comments_are_those_of_pythons_tokenizer() -> None:
    files = [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    assert len(files) > 200
    for text in [TEXT, TEXT.replace("import os", STRINGS), *(path.read_text() for path in files)]:
        assert digest.normalized(text) == by_the_tokenizer(text)


def interpreter(version: str) -> str:
    """Another Python of this machine."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = str(installed[-1]) if installed else shutil.which(f"python{version}")
    if not found:
        pytest.skip(f"no Python {version} on this machine")
    return found


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_another_python_gives_the_same_digests(version: str, tmp_path: Path) -> None:
    code = (
        "import json, runpy, sys\n"
        "m = runpy.run_path(sys.argv[1])\n"
        "digests = {s: m['digest'](s) for s in m['STAGE_MODULES']}\n"
        "print(json.dumps([digests, m['normalized'](open(sys.argv[2]).read()), sys.version_info[:2]]))"
    )
    (tmp_path / "text.py").write_text(TEXT)
    command = [interpreter(version), "-c", code, str(PACKAGE / "digest.py"), str(tmp_path / "text.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    theirs, normalized, (major, minor) = json.loads(done.stdout)
    assert f"{major}.{minor}" == version != f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert theirs == {stage: digest.digest(stage) for stage in digest.STAGE_MODULES}
    assert normalized == digest.normalized(TEXT)
