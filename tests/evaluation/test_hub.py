"""Published weights are looked for where PyTorch puts them, checked, and never fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from diffsiam.errors import UserError
from diffsiam.evaluation import hub


class Code:
    """An object whose reading runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def publish(cache: Path, monkeypatch: pytest.MonkeyPatch, content: object, library: str = "torch") -> Path:
    """A file of weights whose name ends in its checksum's start, as the only metric's."""
    torch.save(content, cache / "new")
    name = f"net-2015-{hashlib.sha256((cache / 'new').read_bytes()).hexdigest()[:8]}.pth"
    weights = hub.Weights("Net", library, f"https://example.org/{name}", 7)
    monkeypatch.setattr(hub, "METRICS", {"fid": weights})
    return (cache / "new").rename(cache / name)


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": "/x"}, {"TORCH_HOME": "~/t", "XDG_CACHE_HOME": "/x"}])
def test_the_place_is_pytorchs(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.place("https://example.org/a/b.pth") == Path(torch.hub.get_dir()) / "checkpoints" / "b.pth"


@pytest.mark.parametrize("metric", hub.METRICS)
def test_the_named_hash_is_what_torch_hub_checks(metric: str) -> None:
    url = hub.METRICS[metric].url
    named = torch.hub.HASH_REGEX.search(url)
    assert named is not None
    assert hub.named_hash(url) == named.group(1)
    assert len(hub.named_hash(url)) == 8


def test_weights_that_are_there_are_found(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = publish(cache, monkeypatch, {"weight": torch.ones(2)})
    assert hub.usable() == ["fid"]
    assert hub.found("fid") == path
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("missing", ["file", "library"])
def test_one_line_says_what_is_missing_and_what_brings_it(
    missing: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = publish(cache, monkeypatch, {"weight": torch.ones(2)}, "torch" if missing == "file" else "no-such")
    if missing == "file":
        path.unlink()
    assert hub.usable() == []
    assert hub.found("fid") is None
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("No fid", "Net's", f"https://example.org/{path.name}", "7 MB", str(path), "pip install "):
        assert part in line


def test_another_file_of_that_name_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(cache, monkeypatch, {"weight": torch.ones(2)})
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(
        UserError, match=rf"{path.name}: its sha256 does not start with {path.stem[-8:]}.*anew, or delete"
    ):
        hub.found("fid")


def test_a_file_that_holds_code_is_refused_unread(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    publish(cache, monkeypatch, Code())
    with pytest.raises(UserError, match="holds more than tensors"):
        hub.found("fid")
    assert "ran" not in capsys.readouterr().out
