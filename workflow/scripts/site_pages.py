"""A hook of mkdocs: the pages of the docs site that no file below docs/ holds, made anew by every build.

The reference of parameters comes from the schema, that of commands from their own --help, and the project's pages from
the files at the repository's root.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import yaml

from diffsiam import cli

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("demo", "thesis")  # whose values stand beside each key
LONGEST = 40  # characters of a value that a table shows
Schema = dict[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls this once it has listed docs/."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """Markdown by path below docs/."""
    return {
        "reference/params.md": parameters(),
        "reference/cli.md": commands(),
        "contributing.md": from_root("CONTRIBUTING.md"),
        "changelog.md": from_root("CHANGELOG.md"),
    }


def from_root(name: str) -> str:
    """A page at the repository's root, its links as they are from docs/."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(r"\]\((CONTRIBUTING|CHANGELOG)\.md", lambda found: found[0].lower(), text)


def commands() -> str:
    """What `diffsiam --help` and the --help of every stage print."""
    text = _help()
    stages = re.findall(r"^ {4}(\w+)(?: {2,}|$)", text, re.MULTILINE)
    parts = [
        "# Commands",
        "Each rule of the pipeline is one of these commands, and each works without Snakemake. What a rule says is its "
        "shell line, which `snakemake -n -p` prints.",
        f"```text\n{text}```",
        *(f"## {stage}\n\n```text\n{_help(stage)}```" for stage in stages),
    ]
    return "\n\n".join(parts) + "\n"


def _help(*stage: str) -> str:
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*stage, "--help"])
    return out.getvalue()


def parameters() -> str:
    """A table for each section of params.yaml: key, meaning, allowed values, and the presets' own."""
    schema = yaml.safe_load((ROOT / "workflow/schemas/params.schema.yaml").read_text(encoding="utf-8"))
    presets = [yaml.safe_load((ROOT / f"workflow/presets/{name}.yaml").read_text(encoding="utf-8")) for name in PRESETS]
    head = ["key", "what it is", "allowed", *PRESETS]
    lines = [
        "# Parameters",
        "",
        "Everything stands in `params.yaml`, and every key has to, save below `overrides` and `by_method`. Its strict "
        "schema, `workflow/schemas/params.schema.yaml`, is what this page is made from; complete files are in "
        "`workflow/presets/`, of which two stand beside the keys. Values that contradict each other are refused before "
        "anything runs.",
    ]
    for section, node in schema["properties"].items():
        lines += ["", f"## {section}", "", _row(head), _row(["---"] * len(head))]
        for path, key in _keys(schema, node, (section,)):
            values = [_code(_value(preset, path)) for preset in presets]
            lines.append(_row([f"`{'.'.join(path)}`", _text(key), _allowed(key), *values]))
    return "\n".join(lines) + "\n"


def _keys(schema: Schema, node: Schema, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """Every key at or below ``node`` that has a description or a value of its own, with what the schema says of it."""
    node = _resolved(schema, node)
    inner: dict[str, Schema] = dict(node.get("properties", {}))
    if isinstance(node.get("additionalProperties"), dict):
        inner["NAME"] = node["additionalProperties"]
    if "description" in node or not inner:
        yield path, node
    if node.get("type") == "array":
        items = _resolved(schema, node.get("items", {}))
        inner = {f"[].{key}": value for key, value in items.get("properties", {}).items()}
    for key, value in inner.items():
        joined = (*path[:-1], path[-1] + "[]", key[3:]) if key.startswith("[].") else (*path, key)
        yield from _keys(schema, value, joined)


def _resolved(schema: Schema, node: Schema) -> Schema:
    """``node`` with what it refers to; a section, and a key of one, is named, not repeated."""
    reference = node.get("$ref")
    if reference is None:
        return node
    parts = reference.removeprefix("#/").split("/")
    rest = {key: value for key, value in node.items() if key != "$ref"}
    if len(parts) == 2 and parts[0] == "properties":
        return {"description": f"As section [{parts[1]}](#{parts[1]}); only the keys that differ.", "type": "object"}
    found: Any = schema
    for part in parts:
        found = found[part]
    if parts[::2] == ["properties", "properties"]:
        found = _resolved(schema, found)
        return {"type": found.get("type", "string"), "description": f"As [{parts[1]}](#{parts[1]}).{parts[3]}."}
    return _resolved(schema, {**found, **rest})


def _allowed(key: Schema) -> str:
    if "enum" in key:
        return ", ".join(_code(value) for value in key["enum"])
    kinds = key["type"] if isinstance(key["type"], list) else [key["type"]]
    words = {"array": "list", "object": "mapping", "boolean": "true or false"}
    text = " or ".join(words.get(kind, kind) for kind in kinds)
    bounds = [
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ]
    limits = [f"{words} {key[name]}" for name, words in bounds if name in key]
    if "array" in kinds:
        low, high = key.get("minItems", 0), key.get("maxItems")
        limits += [f"{low} long" if low == high else f"{low} or more"] if low else []
        items = key.get("items", {})
        limits += [f"each {_allowed(items)}"] if "enum" in items or items.get("type") in ("integer", "number") else []
    return ", ".join([text, *limits])


def _value(preset: Any, path: tuple[str, ...]) -> Any:
    """What a preset has there; `...` where it is too long for a table, nothing below a list or a name."""
    for part in path:
        if not isinstance(preset, dict) or part not in preset:
            return ""
        preset = preset[part]
    return "..." if isinstance(preset, dict) or len(str(preset)) > LONGEST else preset


def _code(value: Any) -> str:
    if value == "" or value == "...":
        return str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def _text(key: Schema) -> str:
    return key.get("description", "").replace("|", "\\|").replace("<", "&lt;")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
