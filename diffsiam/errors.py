"""The one exception that a user is meant to see, and what raises it for a file that lacks what is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class UserError(Exception):
    """A failure that the user can mend.

    The message says what failed, where, the value met, the values allowed and what to do next. Entry points
    print it alone, without a traceback, and exit with status 2.
    """


class Facts(dict[str, Any]):
    """A JSON object out of a file. To ask it for a key that it lacks is a `UserError` that names the file: it is of
    another kind than the one that is read."""

    def __init__(self, found: dict[str, Any], path: Path | str) -> None:
        super().__init__(found)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path}: has no {key!r}, so it is another file than is needed here. Name that one.")
