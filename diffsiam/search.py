"""Section `search` of the parameters: which settings are tried. Nothing here imports PyTorch: Snakemake reads it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import Any

from diffsiam import schema


@dataclasses.dataclass(frozen=True)
class Trial:
    """One combination of values.

    Attributes:
        method: a row of METHODS.
        name: of its folder: ``leaf=value`` for each setting, joined by +; ``given`` where it has none.
        settings: the values by their dotted names below representation.
    """

    method: str
    name: str
    settings: dict[str, Any]


def trials(raw: dict[str, Any]) -> list[Trial]:
    """Every combination of every entry of `search.grid`, once."""
    found: dict[tuple[str, str], Trial] = {}
    for entry in raw["search"]["grid"]:
        for values in itertools.product(*entry["settings"].values()):
            settings = dict(zip(entry["settings"], values, strict=True))
            trial = Trial(entry["method"], _name(settings), settings)
            found.setdefault((trial.method, trial.name), trial)
    return list(found.values())


def tried(raw: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """``raw`` as the trial takes it: its settings are the method's own; no encoder is kept on the way."""
    own = schema.merge(nested(trial.settings), {"representation": {"snapshots": 0}})
    mine = schema.merge(raw["by_method"].get(trial.method, {}), own)
    return {**raw, "by_method": {**raw["by_method"], trial.method: mine}}


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by their dotted names as `by_method` holds them."""
    found: dict[str, Any] = {}
    for leaf, value in settings.items():
        inner = value
        for key in reversed(("representation", *leaf.split("."))):
            inner = {key: inner}
        found = schema.merge(found, inner)
    return found


def _name(settings: dict[str, Any]) -> str:
    """Of characters that no shell and no file system minds."""
    parts = (f"{leaf}={json.dumps(value).strip(chr(34))}" for leaf, value in settings.items())
    return re.sub(r"[^A-Za-z0-9.=+_-]+", "_", "+".join(parts)) or "given"
