"""Named randomness, atomic files, weights, provenance and progress."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsiam import params, runtime
from diffsiam.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DEMO = params.section(params.read(str(ROOT / "workflow" / "presets" / "demo.yaml")), params.Runtime)
CPU = dataclasses.replace(DEMO, device="cpu")


# -------------------------------------------------------------------------------------------------- randomness
def test_a_seed_is_the_start_of_a_hash_of_the_draws_name() -> None:
    expected = int(hashlib.sha256(b"3/noise/17").hexdigest()[:16], 16) // 2
    assert runtime.derive_seed(3, "noise", 17) == expected
    assert 0 <= expected < 2**63


def test_generators_repeat_for_the_same_name_and_differ_for_any_other() -> None:
    names = [(0, "noise", 0), (1, "noise", 0), (0, "view", 0), (0, "noise", 1), (0, "noise", "1a")]
    arrays = [runtime.rng(*n).random(4).tobytes() for n in names]
    tensors = [torch.rand(4, generator=runtime.generator(*n)).numpy().tobytes() for n in names]
    assert len(set(arrays)) == len(set(tensors)) == len(names)
    assert [runtime.rng(*n).random(4).tobytes() for n in names] == arrays
    assert [torch.rand(4, generator=runtime.generator(*n)).numpy().tobytes() for n in names] == tensors


def test_named_draws_leave_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    runtime.rng(0, "x").random(5)
    torch.rand(5, generator=runtime.generator(0, "x"))
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------------------------------- device, precision
def test_device_and_threads_follow_the_params() -> None:
    before = torch.get_num_threads()
    try:
        assert runtime.select_device(dataclasses.replace(CPU, threads=1)).type == "cpu"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_float32_is_float32_in_a_gpus_convolutions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    runtime.select_device(dataclasses.replace(CPU, threads=torch.get_num_threads()))
    assert not torch.backends.cudnn.allow_tf32


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"runtime\.device: cuda"):
        runtime.select_device(dataclasses.replace(CPU, threads=torch.get_num_threads(), device="cuda"))
    auto = dataclasses.replace(CPU, threads=torch.get_num_threads(), device="auto")
    assert runtime.select_device(auto).type == "cpu"


@pytest.mark.parametrize(
    ("precision", "tiles", "vectors", "expected"),
    [
        ("auto", False, False, torch.float32),
        ("auto", True, False, torch.bfloat16),
        ("auto", False, True, torch.bfloat16),
        ("bf16", False, False, torch.bfloat16),
        ("fp32", True, True, torch.float32),
    ],
)
def test_auto_is_bf16_where_the_cpu_has_instructions_for_it(
    precision: str, tiles: bool, vectors: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    assert runtime.compute_dtype(dataclasses.replace(CPU, precision=precision), torch.device("cpu")) == expected


# ------------------------------------------------------------------------------------------------ atomic files
def test_atomic_shows_the_file_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    with runtime.atomic(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # so that the rename cannot cross file systems
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_keeps_the_old_file_and_no_temporary_when_the_block_fails(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(error), runtime.atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_atomic_files_have_the_users_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        runtime.write_text(tmp_path / "x", "text")
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


FULL_DISK = """
import pathlib, resource, signal, sys, torch
from diffsiam import runtime
from diffsiam.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write beyond the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder = pathlib.Path(sys.argv[1])
try:
    runtime.save_weights(folder / "w.safetensors", {"w": torch.zeros(100_000)})
except UserError as e:
    print(e)
try:
    runtime.write_text(folder / "t.txt", 100_000 * "x")
except UserError as e:
    print(e)
"""


def test_a_full_disk_is_named_and_leaves_the_old_files(tmp_path: Path) -> None:
    runtime.save_weights(tmp_path / "w.safetensors", {"w": torch.ones(3)})
    runtime.write_text(tmp_path / "t.txt", "old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    weights, text = done.stdout.splitlines()
    assert weights.startswith(f"{tmp_path / 'w.safetensors'}: cannot be written (")
    assert text.startswith(f"{tmp_path / 't.txt'}: cannot be written (")
    assert torch.equal(runtime.load_weights(tmp_path / "w.safetensors")["w"], torch.ones(3))
    assert (tmp_path / "t.txt").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"w.safetensors", "t.txt"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/x\.txt: cannot be written"):
        runtime.write_text(tmp_path / "file" / "x.txt", "text")


def test_json_round_trip_keeps_the_order_of_keys_and_refuses_nan(tmp_path: Path) -> None:
    value = {"b": 1, "a": [1.5, None, "ü"]}
    runtime.write_json(tmp_path / "x.json", value)
    assert list(runtime.read_json(tmp_path / "x.json").items()) == list(value.items())
    with pytest.raises(ValueError, match="JSON compliant"):
        runtime.write_json(tmp_path / "y.json", {"x": float("nan")})
    assert not (tmp_path / "y.json").exists()


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_missing_and_damaged_json_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json"):
        runtime.read_json(path)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "x").write_bytes(content)
    assert runtime.sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


# ----------------------------------------------------------------------------------------------------- weights
def test_weights_round_trip_bitwise_whatever_their_memory_layout(tmp_path: Path) -> None:
    state = {
        "conv": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "half": torch.randn(3).bfloat16(),
        "view": torch.randn(6, 4).T,
    }
    runtime.save_weights(tmp_path / "w.safetensors", state)
    back = runtime.load_weights(tmp_path / "w.safetensors")
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize("damage", ["missing", "truncated", "folder", "pickle"])
def test_missing_and_damaged_weights_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if damage == "truncated":
        runtime.save_weights(path, {"w": torch.zeros(1000)})
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "folder":
        path.mkdir()
    elif damage == "pickle":
        torch.save({"w": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"w\.safetensors"):
        runtime.load_weights(path)


# -------------------------------------------------------------------------------------------------- provenance
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_on_reading(tmp_path: Path, value: float) -> None:
    runtime.save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2), "b.c": torch.tensor([1.0, value, value])})
    with pytest.raises(UserError, match=r"w.safetensors: b.c holds NaN or infinity in 2 of 3 numbers"):
        runtime.load_weights(tmp_path / "w.safetensors")


def test_provenance_names_versions_commit_and_date_and_is_json() -> None:
    record = json.loads(json.dumps(runtime.provenance()))
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["date"].endswith("+00:00")
    assert record["gpus"] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu, the independent witness, is not here")
def test_provenance_names_the_processor_as_lscpu_does() -> None:
    run = subprocess.run(["lscpu"], env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True)
    fields = dict(line.strip().split(":", 1) for line in run.stdout.splitlines() if ":" in line)
    assert runtime.provenance()["machine"].endswith(f", {fields['Model name'].strip()}")


def test_a_machine_without_git_still_gets_its_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A training must not fail at its end for want of a commit."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime.provenance()["commit"] is None


def test_a_commit_is_dirty_by_edited_code_and_not_by_edited_params(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *args], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    (tmp_path / "diffsiam").mkdir()
    for name in ("diffsiam/code.py", "params.yaml"):
        (tmp_path / name).write_text("a: 1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "--short", "HEAD").strip()
    assert runtime._commit(tmp_path) == commit
    (tmp_path / "params.yaml").write_text("a: 2\n")
    assert runtime._commit(tmp_path) == commit
    (tmp_path / "diffsiam" / "code.py").write_text("a: 2\n")
    assert runtime._commit(tmp_path) == f"{commit}-dirty"
    assert runtime._commit(tmp_path.parent) is None


# ---------------------------------------------------------------------------------------------------- progress
def test_progress_in_a_log_says_the_end_and_not_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = runtime.Progress(100, "simsiam", "steps", start=40)
    for _ in range(60):
        progress.update(1, "loss 0.5")
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("simsiam: 100/100 steps, ")
    assert captured.err.rstrip().endswith("left loss 0.5")


def test_progress_in_a_log_speaks_at_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    progress = runtime.Progress(5, "x", "steps", interval=0)
    for _ in range(5):
        progress.update()
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = runtime.Progress(2, "x", "steps", interval=0, quiet=True)
    progress.update(2)
    progress.close()
    assert capsys.readouterr().err == ""
