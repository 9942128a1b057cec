"""What the local web server of the tests serves, and how."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from socketserver import BaseServer


@contextlib.contextmanager
def running(server: BaseServer) -> Iterator[None]:
    """``server`` answers in a thread of its own meanwhile."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
