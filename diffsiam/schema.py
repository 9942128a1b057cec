"""Parameters as they are written: sources read and merged, and checked against the schema with one line per mistake."""

from __future__ import annotations

import collections
import difflib
import functools
import json
import math
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from diffsiam.errors import UserError

# Schema, presets and the thesis's numbers: beside the package in a clone, inside it where a wheel installed it.
_PACKAGE = Path(__file__).resolve().parent
WORKFLOW = next(path / "workflow" for path in (_PACKAGE, _PACKAGE.parent) if (path / "workflow" / "schemas").is_dir())
SCHEMA = WORKFLOW / "schemas" / "params.schema.yaml"
_LONGEST = 500  # of a value in a message
PRESETS = {path.stem: path for path in sorted((WORKFLOW / "presets").glob("*.yaml"))}


def _is_integer(checker: object, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(checker: object, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_string(checker: object, value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


# JSON Schema's own words take 600.0 for an integer, and YAML's .nan for a number within any bounds. What 64 bits do not
# hold is neither; what no path and no argument of a program can hold is no text.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_number, "string": _is_string}
    ),
)


@functools.cache
def _schema() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    return yaml.load(SCHEMA.read_text(encoding="utf-8"), loader)


def check(raw: dict[str, Any], *, complete: bool) -> None:
    """Refuse unknown keys, wrong types and values out of range; with ``complete``, absent keys too, save in
    overrides and by_method.

    Raises:
        UserError: one line for each mistake.
    """
    entries = raw.get("datasets")
    own = [name for name in entries if isinstance(name, str)] if isinstance(entries, dict) else []
    errors = [
        e
        for e in _Validator(_with(own)).iter_errors(raw)
        if e.validator != "required" or (complete and not {"overrides", "by_method"} & {*e.absolute_path})
    ]
    lines = [_explain(e) for e in sorted(errors, key=lambda e: [*map(str, e.path)])]
    if lines := [*lines, *_taken(own)]:
        raise UserError("params: " + "\n        ".join(dict.fromkeys(lines)))


def whole(raw: dict[str, Any]) -> bool:
    """Whether every section is there: a file of parameters, not changes to one."""
    return raw.keys() >= {*_schema()["required"]}


def _with(own: list[str]) -> dict[str, Any]:
    """The schema, with the names of `datasets` beside those of the built-in data sets."""
    defs = {
        name: {**rule, "enum": [*rule["enum"], *own]} if name in ("dataset", "labelled") else rule
        for name, rule in _schema()["$defs"].items()
    }
    return {**_schema(), "$defs": defs}


def _taken(own: list[str]) -> Iterator[str]:
    """Names of `datasets` that are another's, also on a disk that takes capital letters for small ones."""
    known = {name.casefold(): name for name in _schema()["$defs"]["dataset"]["enum"]}
    for name in own:
        if name.casefold() in known:
            yield f"datasets.{name}: {known[name.casefold()]} is a data set already. Choose another name."
        known[name.casefold()] = name


def parse(source: str) -> dict[str, Any]:
    """The mapping in a YAML file, in a preset by its name, or in a JSON object written out.

    Raises:
        UserError: the file cannot be read, is not UTF-8, not YAML or no mapping; a key stands twice in one mapping; a
            number is written so that YAML 1.1 reads it in base 8 or 60, which DVC does not.
    """
    if source.lstrip().startswith("{"):
        try:
            return json.loads(source, object_pairs_hook=functools.partial(_object, source))
        except (ValueError, RecursionError) as e:
            raise UserError(f"--params {source}: not a JSON object ({e}).") from None
    text = _text(source)
    try:
        mistakes = [*_mistakes(yaml.compose(text, yaml.SafeLoader), (), set())]
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise UserError(
            f"{where}: not YAML: {', '.join(filter(None, [e.context, e.problem]))}. Mend that line; often a bracket, a "
            "quote or a space after a colon is missing, or a tab indents it."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: a date or number that Python refuses
        raise UserError(f"{source}: not YAML that can be read: {' '.join(str(e).split())}.") from None
    if mistakes:
        raise UserError("\n".join(f"{source}: {line}" for line in mistakes))
    if not isinstance(value, dict):
        raise UserError(f"{source}: a mapping of sections is needed, met {type(value).__name__}.")
    return value


def _text(path: str) -> str:
    try:
        data = PRESETS.get(path, Path(path)).read_bytes()
    except OSError as e:
        raise UserError(
            f"{path}: cannot read the parameters ({e.strerror}). Run from the repository's root, or name a "
            f"YAML file or a preset with --params: {', '.join(PRESETS)}."
        ) from None
    end = data.find(b"\0")  # of UTF-16 without a mark, which may be UTF-8 by chance
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        end = e.start
    if end < 0:
        return text
    line, met = data.count(b"\n", 0, end) + 1, "UTF-16" if b"\0" in data else "LATIN1"
    raise UserError(
        f"{path}, line {line}: not UTF-8 text (byte 0x{data[end]:02x}). Save it as UTF-8, such as by "
        f"`iconv -f {met} -t UTF-8 {shlex.quote(path)} > utf-8.yaml`."
    )


def _object(source: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a `UserError` where a key stands there twice."""
    count = collections.Counter(key for key, _ in pairs)
    if twice := [key for key, times in count.items() if times > 1]:
        raise UserError(f"--params {source}: {', '.join(twice)}: stands twice in one object. Keep one.")
    return dict(pairs)


_NUMBERS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float")}
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+$|[0-9_]+:)")


def _mistakes(node: yaml.Node | None, where: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """A line for each key that stands twice in a mapping at or below ``node``, of which YAML itself takes the last, and
    for each number that it reads in another base than 10 without being asked to: 0200, 1:30."""
    if node is None or id(node) in seen:  # what an alias repeats, or holds itself
        return
    seen.add(id(node))
    if where and isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and _OTHER_BASE.match(node.value):
        read, line = yaml.safe_load(node.value), node.start_mark.line + 1
        yield (
            f"{'.'.join(where)}: {node.value} in line {line} is {read} in YAML, which reads a number with a 0 in front "
            "in base 8 and one with colons in base 60. Write the number that is meant, or quote a word."
        )
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _mistakes(item, (*where, str(i)), seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], list[int]] = {}
        for key, value in node.value:
            name = str(key.value)
            if key.tag != "tag:yaml.org,2002:merge":  # <<
                lines.setdefault((key.tag, name), []).append(key.start_mark.line + 1)
            yield from _mistakes(value, (*where, name), seen)
        for (_, name), at in lines.items():
            if len(at) > 1:
                yield f"{'.'.join((*where, name))}: stands there {len(at)} times, in lines {_listed(at)}. Keep one."


def _listed(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """``a`` with the values of ``b`` over its own, at every depth."""
    out = dict(a)
    for key, value in b.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def _explain(error: jsonschema.ValidationError) -> str:
    """One line for one schema error: the key, the value met, what is allowed."""
    key = ".".join(str(p) for p in error.absolute_path)
    rule = typing.cast(dict[str, Any], error.schema)
    if error.validator == "additionalProperties":
        known = list(rule["properties"])
        unknown = [k for k in error.instance if k not in known]
        near = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        path = ".".join(filter(None, [key, str(unknown[0])]))
        return f"{path}: unknown key.{hint} Allowed here: {', '.join(known)}."
    if error.validator == "required":
        missing = [".".join(filter(None, [key, k])) for k in rule["required"] if k not in error.instance]
        verb = "is" if len(missing) == 1 else "are"
        return f"{', '.join(missing)} {verb} missing. Copy from workflow/presets/demo.yaml."
    hint = f" {rule['hint']}" if "hint" in rule else ""
    if isinstance(error.instance, str) and error.validator == "type":
        hint = _text_for_number(error.instance)
    return f"{key}: met {_shown(error.instance)}, allowed: {_allowed(rule)}.{hint}"


def _shown(value: Any) -> str:
    """A value as JSON; the beginning of one that aliases make long, or endless."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:
        return "what holds itself"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _text_for_number(text: str) -> str:
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        finite = False
    if not finite:
        return ""
    if "e" in text.lower():
        return f" YAML reads {text} as text: write a decimal point and a sign, as in 1.0e-4 or 1.0e+5, and no quotes."
    return f" This {text} is text: take its quotes away. Inside --config '...={{}}' all is text; use --configfile FILE."


def _allowed(rule: dict[str, Any]) -> str:
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "above {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "below {}",
        "minItems": "at least {} items",
        "maxItems": "at most {} items",
        "minLength": "not empty",
        "pattern": "matching {}",
    }
    if "enum" in rule:
        return "one of " + ", ".join(map(str, rule["enum"]))
    kind = rule.get("type", "value")
    parts = [kind if isinstance(kind, str) else " or ".join(kind)]
    parts += [text.format(rule[word]) for word, text in words.items() if word in rule]
    parts += ["no value twice"] if rule.get("uniqueItems") else []
    meaning = f" ({rule['description'].rstrip('.')})" if "description" in rule else ""
    return ", ".join(parts) + meaning
