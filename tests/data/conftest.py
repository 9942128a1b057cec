"""Parameters, a local web server, and where the real test images are."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffsiam import params
from tests.data.served import Web

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def cfg(tmp_path: Path) -> params.Data:
    """Data parameters with an empty folder as root and no tolerance for broken images."""
    (tmp_path / "root").mkdir()
    return params.Data(root=str(tmp_path / "root"), image_size=8, max_broken=0.0, val_fraction=0.2, split_seed=0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of tars of real images, or a skip that says how to name one."""
    folder = Path(os.environ.get("DIFFSIAM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "CIFAR10.tar").is_file():
        pytest.skip(f"no real images in {folder}: set DIFFSIAM_TEST_DATA to a folder that holds CIFAR10.tar and others")
    return folder


@pytest.fixture
def web() -> Iterator[Web]:
    served = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append((self.path, self.headers["Range"]))
            body = served.files.get(self.path[1:])
            if body is None:
                self.send_error(404)
                return
            start = int(self.headers["Range"].split("=")[1][:-1]) if self.headers["Range"] and served.ranges else 0
            if start and start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : served.cut])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.base = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()
