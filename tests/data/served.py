"""What the local web server of the tests serves, and how."""

from __future__ import annotations


class Web:
    """Files by path, served on 127.0.0.1; what a test changes is how they are served."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None  # send only so many bytes of a whole answer, whose length is announced in full
        self.ranges = True  # honour Range
        self.requests: list[tuple[str, str | None]] = []  # path and Range header
        self.base = ""

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"
