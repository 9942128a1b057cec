"""An extension of griffe, which reads docstrings for the docs site."""

from __future__ import annotations

import re
from typing import Any

import griffe


class DocstringSections(griffe.Extension):
    """Sections of a docstring may follow each other without the blank line that griffe's parser asks for."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = separated(obj.docstring.value)


def separated(text: str) -> str:
    """``text`` with a blank line before every section that follows another line."""
    return re.sub(r"(?<=[^\n])\n(?=(?:Args|Attributes|Raises|Returns|Yields):\n)", "\n\n", text)
