"""Whatever stands in params.yaml, there is one message that names the key or the line, and no traceback."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from diffsiam import params, schema
from diffsiam.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "workflow" / "presets" / "demo.yaml").read_text()
OVERRIDES = {"CelebA": {"data": {"image_size": 64}, "representation": {"steps": 5, "views": {"flip": 0.1}}}}
SHIPPED = yaml.safe_load(TEXT)
DATASETS = {"birds": {"path": "birds", "layout": "classes", "metric": "accuracy", "validation": 0.3, "attributes": "b"}}
BY_METHOD = {"simsiam": {"representation": {"steps": 5, "optimizer": {"learning_rate": 0.1}}}}
RAW: dict[str, Any] = SHIPPED | {
    "overrides": SHIPPED["overrides"] | OVERRIDES,
    "datasets": DATASETS,
    "by_method": BY_METHOD,
}
SCHEMA = yaml.safe_load(schema.SCHEMA.read_text())
Key = tuple[str | int, ...]


def below(node: Any, key: Key = ()) -> Iterator[Key]:
    """The key of everything at or below ``node``, items of lists as well."""
    if key:
        yield key
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield from below(value, (*key, name))


KEYS = [key for key in below(RAW) if "settings" not in key[:-1]]  # whose rules are those of what they name
NAMED = [key for key in KEYS if isinstance(key[-1], str)]


def dotted(key: Key) -> str:
    return ".".join(map(str, key))


def rule(key: Key) -> dict[str, Any]:
    """The part of the schema that is about ``key``."""
    node: dict[str, Any] = SCHEMA
    for part in key:
        inner = node["items"] if isinstance(part, int) else node.get("properties", {}).get(part)
        node = inner or node["additionalProperties"]
        while "$ref" in node:
            target: Any = SCHEMA
            for word in node["$ref"].removeprefix("#/").split("/"):
                target = target[word]
            node = target
    return node


def at(raw: Any, key: Key) -> Any:
    for part in key:
        raw = raw[part]
    return raw


def changed(key: Key, *value: Any) -> dict[str, Any]:
    """The parameters with another value at ``key``, or without it."""
    raw = copy.deepcopy(RAW)
    if value:
        at(raw, key[:-1])[key[-1]] = value[0]
    else:
        del at(raw, key[:-1])[key[-1]]
    return raw


def message(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        params.check(raw)
    (line,) = str(error.value).splitlines()
    return line


JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}


def json_type(value: Any) -> str:
    return JSON_TYPES.get(type(value), "null")


def allowed_types(key: Key) -> set[str]:
    found = rule(key)
    if "enum" in found:
        return {json_type(value) for value in found["enum"]}
    types = {found["type"]} if isinstance(found["type"], str) else set(found["type"])
    return types | ({"integer"} if "number" in types else set())


def out_of_range(key: Key) -> list[Any]:
    """Values of an allowed type that the schema's words exclude."""
    found, value = rule(key), at(RAW, key)
    made: list[Any] = [found[word] + by for word, by in (("minimum", -1), ("maximum", 1)) if word in found]
    made += [found[word] for word in ("exclusiveMinimum", "exclusiveMaximum") if word in found]
    if "enum" in found:
        made.append(99_999 if isinstance(found["enum"][0], int) else "nothing of the kind")
    made += ["no checksum"] if "pattern" in found else []
    made += [""] if found.get("minLength") else []
    made += [[]] if found.get("minItems") else []
    if isinstance(value, list) and value:
        made += [[*value, *value]] if "maxItems" in found else []
        made += [[value[0], value[0]]] if found.get("uniqueItems") else []
    return made


# -------------------------------------------------------------------------------------------------- every key
@pytest.mark.parametrize("key", KEYS, ids=dotted)
def test_a_value_of_a_wrong_type_is_one_message_that_names_its_key(key: Key) -> None:
    values = ({"a": 1}, [{"a": 1}], "a word", True, 7, 7.5, None)
    wrong = [value for value in values if json_type(value) not in allowed_types(key)]
    assert len(wrong) >= 3
    for value in wrong:
        line = message(changed(key, value))
        assert f"{dotted(key)}: met " in line
        assert "allowed: " in line


@pytest.mark.parametrize("key", [key for key in KEYS if out_of_range(key)], ids=dotted)
def test_a_value_out_of_range_is_one_message_that_names_its_key(key: Key) -> None:
    for value in out_of_range(key):
        assert f"{dotted(key)}: met " in message(changed(key, value)), value


@pytest.mark.parametrize("key", [k for k in KEYS if "string" in allowed_types(k)], ids=dotted)
def test_a_text_that_no_path_can_hold_is_one_message_that_names_its_key(key: Key) -> None:
    assert rf'{dotted(key)}: met "a\u0000b", allowed: ' in message(changed(key, "a\0b"))


@pytest.mark.parametrize("key", [k for k in KEYS if allowed_types(k) & {"integer", "number"}], ids=dotted)
def test_what_is_no_finite_number_is_one_message_that_names_its_key(key: Key) -> None:
    for value in (math.nan, math.inf, -math.inf, -(10**400)):
        assert f"{dotted(key)}: met " in message(changed(key, value))


@pytest.mark.parametrize(
    "key", [key for key in NAMED if key[0] not in ("overrides", "datasets", "by_method") or len(key) == 1], ids=dotted
)
def test_a_missing_key_is_one_message_that_names_it(key: Key) -> None:
    assert f"{dotted(key)} is missing" in message(changed(key))


@pytest.mark.parametrize("key", NAMED, ids=dotted)
def test_a_key_that_stands_twice_is_one_message_that_names_it_and_its_lines(key: Key, tmp_path: Path) -> None:
    root = yaml.compose(yaml.safe_dump({key[0]: RAW[str(key[0])]}, default_flow_style=False))
    node: Any = root
    for part in key[:-1]:
        children = enumerate(node.value) if isinstance(part, int) else ((k.value, v) for k, v in node.value)
        node = next(value for name, value in children if name == part)
    node.value.append(copy.deepcopy(next(pair for pair in node.value if pair[0].value == key[-1])))
    file = tmp_path / "twice.yaml"
    file.write_text(yaml.serialize(root))
    with pytest.raises(UserError) as error:
        schema.parse(str(file))
    (line,) = str(error.value).splitlines()
    written = [
        n for n, text in enumerate(file.read_text().splitlines(), 1) if text.strip(" -").startswith(f"{key[-1]}:")
    ]
    assert line.startswith(f"{file}: {dotted(key)}: stands there 2 times, in lines ")
    first, second = line.removesuffix(". Keep one.").rpartition("in lines ")[2].split(" and ")
    assert {int(first), int(second)} <= set(written)


# ------------------------------------------------------------------------------------------- anything at all
NASTY = [
    *("", "~", "yes", "0x1F", "1e3", "1.0e+400", ".inf", ".nan", "2024-01-01", "!!binary aGk=", "!!set {a, b}", "[[]]"),
    *("{}", "99999999999999999999", "-0.0", "1_000", "'1.0'", "{1: 2}", "{~: 3}", "[.nan]", "{[1, 2]: 3}", "0", "1"),
    *("[0, 1]", "[[0, 1]]", "digits", "[digits, sprites]", "0.5", "1000", "2", "{CelebA: {data: {image_size: 8}}}"),
    *("{CelebA: {data: {image_size: 9}}, 5: {data: {image_size: 9}}}", "{true: 1, x: 2}", "'\\ud83d\\ude00'"),
]


def test_any_values_anywhere_pass_or_are_one_error(tmp_path: Path) -> None:
    rng, refused = np.random.default_rng(0), 0
    values = []
    for i, text in enumerate(NASTY):
        (tmp_path / f"{i}.yaml").write_text(f"value: {text}\n")
        try:
            values.append(schema.parse(str(tmp_path / f"{i}.yaml"))["value"])
        except UserError:
            assert text == "{[1, 2]: 3}"
    for _ in range(600):
        raw = copy.deepcopy(RAW)
        for _ in range(int(rng.integers(1, 4))):
            keys = [*below(raw)]
            key = keys[int(rng.integers(len(keys)))]
            at(raw, key[:-1])[key[-1]] = copy.deepcopy(values[int(rng.integers(len(values)))])
        try:
            params.check(raw)
        except UserError:
            refused += 1
        else:
            for cls in params.SECTIONS.values():
                params.section(raw, cls)
    assert 300 < refused < 600


def test_damaged_files_are_read_or_are_one_error_that_names_the_file(tmp_path: Path) -> None:
    rng, messages = np.random.default_rng(0), []
    whole = np.frombuffer("\n".join(TEXT.splitlines()[:45]).encode(), np.uint8)
    file = tmp_path / "params.yaml"
    for _ in range(300):
        data = whole.copy()
        places = rng.integers(len(data), size=int(rng.integers(1, 4)))
        data[places] = rng.choice([*b"\t\n\"'{}[]:,-&*!|>%@#?~ \0\xff\xc3", *range(256)], size=len(places))
        file.write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.3 else data)
        try:
            schema.parse(str(file))
        except UserError as e:
            messages.append(str(e))
    assert 50 < len(messages) < 300
    assert all(text.startswith(str(file)) for text in messages)


# ------------------------------------------------------------------------------------------------ what is read
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb: [1\nc: }\n", ["line 3, column 2", "not YAML", "Mend that line"]),
        (b"a: 1\n\tb: 2\n", ["line 2", "not YAML", "tab"]),
        (b"a: 1\n---\nb: 2\n", ["line 2", "not YAML", "but found another document"]),
        (b"a: 1\nb: caf\xe9\n", ["line 2: not UTF-8 text (byte 0xe9)"]),
        (b"a: caf\xe9\n", ["iconv -f LATIN1 -t UTF-8"]),
        ("a: 1\n".encode("utf-16"), ["line 1: not UTF-8 text", "iconv -f UTF-16 -t UTF-8"]),
        ("a: 1\n".encode("utf-16-be"), ["line 1: not UTF-8 text (byte 0x00)"]),
        (b"a: 2024-13-45\n", ["not YAML that can be read: month must be in 1..12"]),
        (b"a: !!int many\n", ["not YAML that can be read", "many"]),
        (b"a: !!python/object:os.system {}\n", ["line 1", "could not determine a constructor"]),
        (b"a: " + 5000 * b"9" + b"\n", ["not YAML that can be read", "4300 digits"]),
        (3000 * b"[", ["not YAML that can be read", "recursion"]),
        (b"", ["a mapping of sections is needed", "NoneType"]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_not_yaml_is_named_with_its_line(content: bytes, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        schema.parse(str(file))
    assert str(error.value).startswith(str(file))
    for word in words:
        assert word in str(error.value)


def test_aliases_merges_and_a_byte_order_mark_are_read_as_yaml_has_them(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n", encoding="utf-8-sig")
    one = {"x": 1, "y": 2}
    assert schema.parse(str(file)) == {"a": one, "b": {"x": 3, "y": 2}, "c": [one, one]}


@pytest.mark.parametrize("text", ["seeds: &s [*s]\n", "\n".join(
    ["methods: &a0 [x]", *(f"{key}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i, key in enumerate("bcdef", 1)),
     "seeds: *a5\n"])])  # fmt: skip
def test_a_value_that_aliases_make_long_or_endless_is_one_short_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"seeds(\.0)?: met ") as error:
        params.read(str(tmp_path / "params.yaml"))
    assert max(map(len, str(error.value).splitlines())) < 1000


def test_every_key_that_stands_twice_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text('a: 1\nb:\n  - {c: 1, d: 2, c: 3}\n"a": 2\na: 3\n')
    with pytest.raises(UserError) as error:
        schema.parse(str(file))
    assert sorted(str(error.value).splitlines()) == [
        f"{file}: a: stands there 3 times, in lines 1, 4 and 5. Keep one.",
        f"{file}: b.0.c: stands there 2 times, in lines 3 and 3. Keep one.",
    ]


def test_a_key_that_stands_twice_in_a_json_object_is_named() -> None:
    with pytest.raises(UserError, match=r"--params .*: ways: stands twice"):
        schema.parse('{"fewshot": {"ways": 5, "ways": 6}}')


@pytest.mark.parametrize(("written", "read"), [("0200", "128"), ("-010", "-8"), ("1:30", "90"), ("1:30.5", "90.5")])
def test_a_number_that_yaml_reads_in_another_base_is_refused_with_what_it_reads(
    written: str, read: str, tmp_path: Path
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"diffusion:\n  sizes: [1, {written}]\n")
    with pytest.raises(UserError, match=rf"p\.yaml: diffusion\.sizes\.1: {written} in line 2 is {read} in YAML"):
        schema.parse(str(file))


@pytest.mark.parametrize("written", ["0", "200", "0.5", "0x10", "1_000", "'0200'", "0.", "1e3", "12:00 h"])
def test_other_numbers_and_words_are_read_as_yaml_reads_them(written: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"a: {written}\n")
    assert schema.parse(str(file)) == yaml.safe_load(file.read_text())
