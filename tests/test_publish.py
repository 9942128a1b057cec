"""Publishing and fetching, against a local server that speaks the Hub's API as far as its library asks."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from diffusers import DDPMPipeline
from huggingface_hub import constants

import diffsiam
from diffsiam import cli, publish, runtime
from diffsiam.models.encoder import Encoder
from tests.data.served import running
from tests.report import small_trained
from tests.training import tiny

NAME, SHA = "me/model", "a" * 40
TOKEN = "hf_secret"
Capture: TypeAlias = pytest.CaptureFixture[str]


class Hub(ThreadingHTTPServer):
    """One repository at one commit; what a test changes is what it holds and how it answers."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lost: set[str] = set()  # listed, but not there
        self.cut: set[str] = set()  # sent without their last byte
        self.status: int | None = None  # of every answer
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.visibility: str | None = None
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(self.server.status or status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(path)
        hub.tokens.add(self.headers["Authorization"])
        if path == f"/api/models/{NAME}/tree/{SHA}":
            self.json([self.entry(name, content) for name, content in hub.files.items()])
        elif path.startswith(f"/api/models/{NAME}/"):
            self.answer(404, b"", X_Error_Code="RevisionNotFound")
        elif (
            path.startswith(f"/{NAME}/resolve/{SHA}/")
            and (file := path.rpartition("/")[2]) in hub.files.keys() - hub.lost
        ):
            self.file(hub.files[file], cut=file in hub.cut)
        elif path.startswith(f"/{NAME}/"):
            self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=SHA)
        else:
            self.answer(404, b"", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def entry(self, name: str, content: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def file(self, content: bytes, *, cut: bool) -> None:
        self.close_connection = True
        self.send_response(self.server.status or 200)
        facts = {"ETag": hashlib.sha1(content).hexdigest(), "X-Repo-Commit": SHA, "Connection": "close"}
        for name, value in facts.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - (cut and self.command == "GET")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:-1] if cut else content)

    def do_POST(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub.asked.append(path)
        hub.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            hub.visibility = json.loads(body).get("visibility")
            self.json({"url": f"{hub.address}/{NAME}"})
        elif path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif path == f"/api/models/{NAME}/preupload/main":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.json({"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]})
        elif path == f"/api/models/{NAME}/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            hub.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            self.json({"commitUrl": f"{hub.address}/{NAME}/commit/{SHA}", "commitOid": SHA})

    def log_message(self, *args: object) -> None:
        pass


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's library has read HF_ENDPOINT already."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """In the place of huggingface.co, with a cache of its own."""
    server = Hub()
    point_at(server.address, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running(server):
        yield server


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return small_trained.encoder(tmp_path / "results")


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fails(capsys: Capture, out: Path, *words: str) -> str:
    """Status 2, one message, nothing left; returns the message."""
    assert cli.main([*words, "--out", str(out)]) == 2
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line and not line.startswith("Fetching ")]  # the library's progress
    assert len(said) == 1, said
    assert TOKEN not in said[0]
    return said[0]


def test_a_published_encoder_holds_its_files_and_loads_as_it_was(trained: Path, tmp_path: Path) -> None:
    publish.publish(trained, tmp_path / "out")
    made = read(tmp_path / "out")
    named = {"config.json", *(f"{stem}.safetensors" for stem in ("encoder", "encoder_ema", "decoder_ema", "heads"))}
    assert set(made) == named | {"README.md", "checksums.json"}
    assert {name: made[name] for name in named} == {name: (trained / name).read_bytes() for name in named}
    assert json.loads(made["checksums.json"]) == {name: hashlib.sha256(made[name]).hexdigest() for name in named}
    reference = Encoder(small_trained.WIDTH, tiny.SIDE)
    reference.load_state_dict(runtime.load_weights(trained / "encoder.safetensors"))
    x = torch.rand(2, 3, tiny.SIDE, tiny.SIDE) * 2 - 1
    loaded = diffsiam.load_encoder(tmp_path / "out")
    assert torch.equal(loaded.model(x), reference.eval()(x))


def test_a_published_diffusion_model_is_a_pipeline_for_diffusers(trained: Path, tmp_path: Path) -> None:
    publish.publish(small_trained.diffusion(tmp_path / "results"), tmp_path / "out")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out", local_files_only=True, low_cpu_mem_usage=False)
    assert pipeline.scheduler.config.beta_end == 0.02
    ours, theirs = diffsiam.load_diffusion(tmp_path / "out").state_dict(), pipeline.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_full_disk_is_one_message_and_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(publish.shutil, "copyfile", full)
    assert cli.main(["publish", str(trained), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'}: cannot be written ([Errno 28] No space left" in capsys.readouterr().err
    assert list(tmp_path.glob("*out*")) == []


def test_nothing_is_uploaded_unless_asked_to(trained: Path, tmp_path: Path, hub: Hub) -> None:
    publish.publish(trained, tmp_path / "out")
    assert hub.asked == []


def test_what_is_uploaded_comes_back_the_same_from_a_private_repository(
    trained: Path, tmp_path: Path, hub: Hub, capsys: Capture
) -> None:
    assert cli.main(["publish", str(trained), "--out", str(tmp_path / "out"), "--to", NAME]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert hub.visibility == "private"
    assert command == ["diffsiam", "fetch", NAME, "--revision", SHA, "--out", "DIR"]
    assert cli.main([*command[1:-1], str(tmp_path / "back")]) == 0
    assert read(tmp_path / "back") == read(tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "back").iterdir())
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}


def test_what_was_fetched_once_needs_no_network(
    trained: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish.publish(trained, tmp_path / "out")
    hub.files = read(tmp_path / "out")
    publish.fetch(NAME, SHA, tmp_path / "first")
    point_at("http://127.0.0.1:9", monkeypatch)
    publish.fetch(NAME, SHA, tmp_path / "second")
    assert read(tmp_path / "second") == read(tmp_path / "out")


def test_what_could_hold_code_is_left_where_it_is(trained: Path, tmp_path: Path, hub: Hub) -> None:
    publish.publish(trained, tmp_path / "out")
    hub.files = read(tmp_path / "out") | {"pytorch_model.bin": b"x", "setup.py": b"x"}
    publish.fetch(NAME, SHA, tmp_path / "back")
    assert read(tmp_path / "back") == read(tmp_path / "out")
    assert not [path for path in hub.asked if path.endswith((".bin", ".py"))]


# ------------------------------------------------------------------------------------------------------ failures
def test_no_network_is_one_message(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library asks five times
    said = fails(capsys, tmp_path / "out", "fetch", NAME, "--revision", SHA)
    assert f"{NAME} at {SHA}: cannot be fetched: ConnectError, and it is not whole in the cache" in said
    assert "HF_ENDPOINT" in said


def test_a_commit_that_is_not_there_is_one_message(tmp_path: Path, hub: Hub, capsys: Capture) -> None:
    said = fails(capsys, tmp_path / "out", "fetch", NAME, "--revision", "b" * 40)
    assert "the repository has no such commit" in said


def test_a_repository_that_is_not_there_is_one_message(tmp_path: Path, hub: Hub, capsys: Capture) -> None:
    said = fails(capsys, tmp_path / "out", "fetch", "you/other", "--revision", SHA)
    assert "you/other at" in said
    assert "no such repository, or a private one" in said


@pytest.mark.parametrize("revision", ["main", "a" * 39, "A" * 40])
def test_a_revision_that_may_move_is_refused(tmp_path: Path, hub: Hub, capsys: Capture, revision: str) -> None:
    said = fails(capsys, tmp_path / "out", "fetch", NAME, "--revision", revision)
    assert f"--revision {revision}: needed are the 40 hexadecimal digits" in said
    assert hub.asked == []


def test_a_repository_of_others_is_refused_before_its_files_are_taken(
    tmp_path: Path, hub: Hub, capsys: Capture
) -> None:
    hub.files = {"config.json": b"{}"}
    assert "no checksums.json, so not what" in fails(capsys, tmp_path / "out", "fetch", NAME, "--revision", SHA)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("gone", "'heads.safetensors', which its checksums.json names, is not there"),
        ("lost", "cannot be fetched: HTTP 404"),
        ("cut", "cannot be fetched: OSError"),
        ("other", "heads.safetensors has sha256 "),
        ("outside", "'../evil', which its checksums.json names, is not there"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(
    trained: Path, tmp_path: Path, hub: Hub, capsys: Capture, fault: str, said: str
) -> None:
    publish.publish(trained, tmp_path / "made")
    hub.files, file = read(tmp_path / "made"), "heads.safetensors"
    if fault == "gone":
        del hub.files[file]
    elif fault == "outside":
        hub.files["checksums.json"] = json.dumps({"../evil": "0" * 64}).encode()
    elif fault == "other":
        hub.files[file] = hub.files[file][:-1] + b"x"
    else:
        {"lost": hub.lost, "cut": hub.cut}[fault].add(file)
    assert said in fails(capsys, tmp_path / "out", "fetch", NAME, "--revision", SHA)


def test_an_upload_that_is_refused_says_so_and_leaves_the_folder_whole(
    trained: Path, tmp_path: Path, hub: Hub, capsys: Capture
) -> None:
    hub.status = 403
    assert cli.main(["publish", str(trained), "--out", str(tmp_path / "out"), "--to", NAME]) == 2
    said = capsys.readouterr().err
    assert f"{NAME}: cannot be uploaded: HTTP 403" in said
    assert TOKEN not in said
    assert "README.md" in read(tmp_path / "out")


@pytest.mark.parametrize("words", [["fetch", "nobody", "--revision", SHA], ["publish", "FOLDER", "--to", "a/b/c"]])
def test_a_name_that_is_no_repositorys_is_refused_first(
    trained: Path, tmp_path: Path, hub: Hub, capsys: Capture, words: list[str]
) -> None:
    words = [str(trained) if word == "FOLDER" else word for word in words]
    assert "not a repository's name. Give owner/name" in fails(capsys, tmp_path / "out", *words)
    assert hub.asked == []


def test_a_folder_that_is_there_already_stays_as_it_is(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert cli.main(["publish", str(trained), "--out", str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert read(tmp_path / "out") == {"mine": b""}


def test_a_training_whose_weights_are_gone_publishes_nothing(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    (trained / "heads.safetensors").unlink()
    assert f"{trained / 'heads.safetensors'}: no such file" in fails(capsys, tmp_path / "out", "publish", str(trained))


def test_the_environment_alone_says_which_hub_and_which_cache(tmp_path: Path, hub: Hub, trained: Path) -> None:
    publish.publish(trained, tmp_path / "out")
    hub.files = read(tmp_path / "out")
    here = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "other"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "diffsiam.cli", "fetch", NAME, "--revision", SHA, "--out", "back"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert read(tmp_path / "back") == hub.files
    assert (tmp_path / "other").is_dir()
