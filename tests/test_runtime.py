"""Named randomness, atomic files, weights, provenance and progress."""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
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
    assert runtime.rng(3, "noise", 17).random() == np.random.Generator(np.random.Philox(expected)).random()
    ours = torch.rand(2, generator=runtime.generator(3, "noise", 17))
    assert torch.equal(ours, torch.rand(2, generator=torch.Generator().manual_seed(expected)))


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
        assert runtime.select_device(dataclasses.replace(CPU, threads=before + 1)).type == "cpu"
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_float32_is_float32_in_a_gpus_convolutions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    runtime.select_device(dataclasses.replace(CPU, threads=torch.get_num_threads()))
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_fastest_algorithms_are_searched_for_where_shapes_recur_and_bits_need_not(
    deterministic: bool, steady: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not steady)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cfg = dataclasses.replace(CPU, threads=torch.get_num_threads(), deterministic=deterministic)
    runtime.select_device(cfg, steady=steady)
    assert torch.backends.cudnn.benchmark is (steady and not deterministic)
    assert asked == [True] * deterministic


@pytest.mark.parametrize(
    ("graph", "device", "expected"),
    [("auto", "cuda", True), ("auto", "cpu", False), (True, "cuda", True), (False, "cuda", False)],
)
def test_steps_are_captured_on_a_gpu_unless_the_params_say_no(graph: bool | str, device: str, expected: bool) -> None:
    cfg = dataclasses.replace(CPU, graph=graph)
    assert runtime.use_graph(cfg, torch.device(device)) is expected


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"runtime\.device: cuda"):
        runtime.select_device(dataclasses.replace(CPU, threads=torch.get_num_threads(), device="cuda"))
    auto = dataclasses.replace(CPU, threads=torch.get_num_threads(), device="auto")
    assert runtime.select_device(auto).type == "cpu"


@pytest.mark.parametrize(
    ("precision", "tiles", "vectors", "width", "expected"),
    [
        ("auto", False, False, 64, torch.float32),
        ("auto", True, False, 64, torch.bfloat16),
        ("auto", False, True, 64, torch.bfloat16),
        ("auto", True, True, 63, torch.float32),
        ("bf16", False, False, 4, torch.bfloat16),
        ("fp32", True, True, 512, torch.float32),
    ],
)
def test_auto_is_bf16_in_wide_networks_where_the_cpu_has_instructions_for_it(
    precision: str, tiles: bool, vectors: bool, width: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    cfg = dataclasses.replace(CPU, precision=precision)
    assert runtime.compute_dtype(cfg, torch.device("cpu"), width) == expected


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
import pathlib, resource, signal, sys, numpy as np, pandas as pd, torch
from matplotlib.figure import Figure
from diffsiam import runtime
from diffsiam.errors import UserError
from diffsiam.evaluation import store
from diffsiam.report.save import save

noise = np.random.default_rng(0).random((200, 200))
figure = Figure()
figure.subplots().imshow(noise)

def table(path):
    with runtime.atomic(path) as temporary:
        pd.DataFrame(noise).to_csv(temporary)

def arrays(path):
    with runtime.atomic(path) as temporary, open(temporary, "wb") as f:
        np.savez_compressed(f, noise)

def pdf(path):
    with runtime.atomic(path) as temporary:
        figure.savefig(temporary, format="pdf")

def streamed(path):
    with runtime.writing(path), open(path, "wb") as f:
        f.write(noise.tobytes())

labels = np.zeros(len(noise), int)
writers = {
    "w.safetensors": lambda path: runtime.save_weights(path, {"w": torch.zeros(100_000)}),
    "t.txt": lambda path: runtime.write_text(path, 100_000 * "x"),
    "r.json": lambda path: store.write_result(path, {"x": [*range(10_000)]}),
    "f.npz": lambda path: store.write(path, noise, labels, noise, labels),
    "a.npz": arrays,
    "t.csv": table,
    "p.png": lambda path: save(figure, path),
    "p.pdf": pdf,
    "s.bin": streamed,
}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write beyond the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for name, write in writers.items():
    try:
        write(pathlib.Path(sys.argv[1]) / name)
    except UserError as e:
        print(e)
"""
FULL_DISK_FILES = ["w.safetensors", "t.txt", "r.json", "f.npz", "a.npz", "t.csv", "p.png", "p.pdf", "s.bin"]


def test_a_full_disk_is_one_message_for_every_kind_of_file_and_leaves_the_old_ones(tmp_path: Path) -> None:
    replaced = FULL_DISK_FILES[:-1]  # the last is written in place, in a folder of its own
    for name in replaced:
        (tmp_path / name).write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(FULL_DISK_FILES)
    for line, name in zip(lines, FULL_DISK_FILES, strict=True):
        assert line.startswith(f"{tmp_path / name}: cannot be written ("), line
        assert "File too large" in line
    assert [(tmp_path / name).read_text() for name in replaced] == len(replaced) * ["old"]
    assert {p.name for p in tmp_path.iterdir()} == set(FULL_DISK_FILES)


def test_what_a_library_raises_of_its_own_is_not_called_a_full_disk(tmp_path: Path) -> None:
    """A dropped connection and an undecodable image are OSErrors too."""
    with pytest.raises(OSError, match="dropped"), runtime.writing(tmp_path / "x"):
        raise OSError("dropped")


# Writers whose caller names the disk in a message of its own, or that write to their own module's lock.
OWN_WRITERS = {"diffsiam.runtime", "diffsiam.data.prepare", "diffsiam.data.download", "diffsiam.records"}
WRITES = {"write_text", "write_bytes", "to_csv", "savefig", "savez", "savez_compressed", "save_file", "tofile"}


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file by itself."""
    text = ast.unparse(call.func)
    name = text.rsplit(".", 1)[-1]
    if text == "open":
        return bool(call.args[1:]) and bool(set(ast.literal_eval(call.args[1])) & set("wax"))
    if name == "save":
        return text.startswith(("np.", "torch.", "Image."))
    return name in WRITES and not text.startswith("runtime.")


def unguarded_writes(source: str) -> list[int]:
    """Lines that write a file outside `runtime.atomic` and `runtime.writing`."""

    def lines(node: ast.AST) -> Iterator[int]:
        if isinstance(node, ast.With):
            names = {n.attr for item in node.items for n in ast.walk(item) if isinstance(n, ast.Attribute)}
            if names & {"atomic", "writing"}:
                return
        if isinstance(node, ast.Call) and writes(node):
            yield node.lineno
        for child in ast.iter_child_nodes(node):
            yield from lines(child)

    return [*lines(ast.parse(source))]


def test_every_file_is_written_where_a_full_disk_becomes_a_message() -> None:
    package = ROOT / "diffsiam"
    found = {}
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module not in OWN_WRITERS and (lines := unguarded_writes(path.read_text())):
            found[module] = lines
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        'open(p, "wb")', 'open(p, "a")', "np.savez(f, x=x)", "frame.to_csv(p)", "p.write_text(t)", "fig.savefig(p)",
        "torch.save(x, p)", "Image.fromarray(x).save(p)", "safetensors.torch.save_file(x, p)",
    ],
)  # fmt: skip
def test_a_write_past_the_one_writer_would_be_found(line: str) -> None:
    assert unguarded_writes(line) == [1]
    assert unguarded_writes(f"with runtime.atomic(p) as t:\n    {line}") == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/x\.txt: cannot be written"):
        runtime.write_text(tmp_path / "file" / "x.txt", "text")


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out: cannot be written \(.*Is a directory"):
        runtime.write_text(tmp_path / "out", "text")
    assert list((tmp_path / "out").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_json_round_trip_keeps_the_order_of_keys_and_refuses_nan(tmp_path: Path) -> None:
    value = {"b": 1, "a": [1.5, None, "ü"]}
    runtime.write_json(tmp_path / "x.json", value)
    assert list(runtime.read_json(tmp_path / "x.json").items()) == list(value.items())
    with pytest.raises(ValueError, match="JSON compliant"):
        runtime.write_json(tmp_path / "y.json", {"x": float("nan")})
    assert not (tmp_path / "y.json").exists()


# ----------------------------------------------------------------------------------------------------- reading
READERS: dict[str, Callable[[Path], object]] = {
    "x.json": runtime.read_json,
    "x.csv": runtime.read_csv,
    "x.npy": runtime.read_array,
    "x.npz": runtime.read_arrays,
    "x.safetensors": runtime.load_weights,
}


def whole(folder: Path, name: str) -> Path:
    """A small file of the kind."""
    path, values = folder / name, np.arange(12.0).reshape(3, 4)
    {
        "x.json": lambda: runtime.write_json(path, {"a": values.tolist()}),
        "x.csv": lambda: path.write_text("a,b\n1,2\n3,4\n"),
        "x.npy": lambda: np.save(path, values),
        "x.npz": lambda: np.savez(path, x=values, y=values),
        "x.safetensors": lambda: runtime.save_weights(path, {"x": torch.ones(3)}),
    }[name]()
    return path


def test_arrays_and_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert runtime.read_array(whole(tmp_path, "x.npy")).tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert set(runtime.read_arrays(whole(tmp_path, "x.npz"))) == {"x", "y"}
    assert runtime.read_csv(whole(tmp_path, "x.csv")).to_dict("list") == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "not text", "a folder", "a web page"])
def test_what_cannot_be_read_is_one_message_that_names_it(name: str, damage: str, tmp_path: Path) -> None:
    path = whole(tmp_path, name)
    content = {
        "empty": b"",
        "cut": path.read_bytes()[:-9],
        "not text": b"\xff\xfe",
        "a web page": b'<a href=",">\n1,2,"',
    }
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(content[damage])
    if name == "x.csv" and damage in ("cut", "a web page"):  # a table may end anywhere, and hold any text
        return
    with pytest.raises(UserError) as error:
        READERS[name](path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}: no such file. Name one" if damage == "missing" else f"{path}: not ")
    if damage == "a folder" and name != "x.safetensors":  # whose reader calls it no such device
        assert line.endswith("(Is a directory). Name a file that this user may read.")


@pytest.mark.parametrize("name", ["x.json", "x.npy", "x.npz", "x.safetensors"])
def test_a_file_with_wrong_bytes_is_read_or_is_one_message(name: str, tmp_path: Path) -> None:
    data = np.frombuffer(whole(tmp_path, name).read_bytes(), np.uint8)
    rng, met = np.random.default_rng(0), []
    for i in range(200):
        wrong = data.copy()
        places = rng.integers(len(data), size=int(rng.integers(1, 4)))
        wrong[places] = rng.integers(256, size=len(places))
        path = tmp_path / f"{i}{name}"
        path.write_bytes(wrong.tobytes())
        try:
            READERS[name](path)
        except UserError as e:
            met.append(str(e).startswith(f"{path}: not "))
    assert len(met) > 20
    assert all(met)


def test_a_key_that_a_json_file_lacks_is_one_message_that_names_both(tmp_path: Path) -> None:
    runtime.write_json(tmp_path / "x.json", {"a": [{"b": 1}], "c": None})
    found = runtime.read_json(tmp_path / "x.json")
    assert (found["a"][0]["b"], found["c"], found.get("d"), "d" in found) == (1, None, None, False)
    assert json.dumps(copy.deepcopy(found)) == '{"a": [{"b": 1}], "c": null}'
    for lacks in (found, found["a"][0]):
        with pytest.raises(UserError, match=r"x\.json: has no 'd', so it is another file than is needed here"):
            lacks["d"]


def test_no_object_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([{}]))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UserError, match=r"not a complete .*(pickle=False|object arrays)|Python objects") as error:
            READERS[name](tmp_path / name)
        assert "load it" not in str(error.value)


def test_a_missing_result_is_asked_of_snakemake_as_the_rules_name_it_and_any_other_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("results/a b.json", tmp_path / "results" / "a b.json", "mine/../results/a b.json"):
        text = str(runtime.missing(path))
        assert text == f"{path}: no such file. Ask Snakemake for it: `snakemake --cores all 'results/a b.json'`."
    for path in ("a.json", "resultsof/a.json", tmp_path.parent / "results" / "a.json", "/results/a.json"):
        assert str(runtime.missing(path)) == f"{path}: no such file. Name one that is there, or make it first."


def test_a_damaged_result_is_asked_for_by_name_and_a_file_of_the_users_own_is_none_of_snakemakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is planned for features that are gone while the tables made from them are up to date."""
    monkeypatch.chdir(tmp_path)
    text = str(runtime.damaged("results/features/x.npz", "no train"))
    assert text == (
        "results/features/x.npz: no train. Delete it and ask Snakemake for it by name: `rm results/features/x.npz && "
        "snakemake --cores all results/features/x.npz`."
    )
    text = str(runtime.damaged("mine.npz", "no train"))
    assert text.startswith("mine.npz: no train. Delete it and run the command that made it again; where none did, ")
    assert "nakemake" not in text


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


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_on_reading(tmp_path: Path, value: float) -> None:
    runtime.save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2), "b.c": torch.tensor([1.0, value, value])})
    with pytest.raises(UserError, match=r"w.safetensors: b.c holds NaN or infinity in 2 of 3 numbers"):
        runtime.load_weights(tmp_path / "w.safetensors")


# -------------------------------------------------------------------------------------------------- provenance
def test_a_package_that_is_not_installed_has_no_version() -> None:
    """Trainings run without Snakemake and DVC, and end with a record."""
    assert runtime._version("torch") == torch.__version__.split("+")[0]
    assert runtime._version("no-such-package") is None


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
    git("checkout", "--quiet", "diffsiam")
    assert runtime._commit(tmp_path) == commit
    (tmp_path / "diffsiam" / "method.py").write_text("a module that no commit has\n")
    assert runtime._commit(tmp_path) == f"{commit}-dirty"


def test_a_repository_around_the_pipeline_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zip of the pipeline unpacked inside another repository, an installation in another's environment, a run from
    another's hook: all of them see a commit that is not the code's."""

    def git(folder: Path, *args: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *args], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    other, inside = tmp_path / "other", tmp_path / "other" / "deep" / "pipeline"
    (inside / "diffsiam").mkdir(parents=True)
    (inside / "diffsiam" / "code.py").write_text("a: 1\n")
    git(other, "init", "--quiet")
    git(other, "commit", "--quiet", "--allow-empty", "--message", "of the other")
    assert runtime._commit(inside) is None
    (tmp_path / "link").symlink_to(inside)
    assert runtime._commit(tmp_path / "link") is None
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert runtime._commit(inside) is None
    monkeypatch.delenv("GIT_DIR")
    git(inside, "init", "--quiet")
    git(inside, "add", ".")
    git(inside, "commit", "--quiet", "--message", "of the pipeline")
    own = git(inside, "rev-parse", "--short", "HEAD")
    assert runtime._commit(inside) == own
    git(inside, "worktree", "add", "--quiet", "--detach", str(other / "tree"))
    assert runtime._commit(other / "tree") == own
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert runtime._commit(inside) == own


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


def test_the_rate_is_that_of_this_run_and_what_is_left_follows_from_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 5.0
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now)
    progress = runtime.Progress(100, "x", "steps", start=40, interval=0)
    now = 15.0
    progress.update(20)
    assert capsys.readouterr().err == "x: 60/100 steps, 2.0 steps/s, 0:00:20 left\n"


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = runtime.Progress(2, "x", "steps", interval=0, quiet=True)
    progress.update(2)
    progress.close()
    assert capsys.readouterr().err == ""
