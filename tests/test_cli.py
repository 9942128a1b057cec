"""The command line's own promises: exit status and messages."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffsiam import cli, commands, params
from diffsiam.evaluation import features

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.10 GiB is free."
)
COMMAND = ["features", "--encoder", "e.safetensors", "--data", "data", "--out", "f.npz"]


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(features, "run", run)
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    return cli.main(COMMAND)


def test_a_full_gpu_is_one_message_that_says_how_to_share_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(torch.OutOfMemoryError(FULL), monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffsiam features: the GPU's memory is full (CUDA out of memory). ")
    assert "--resources gpu_jobs=1" in said
    assert said.count("\n") == 1


def test_any_other_error_of_pytorch_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        fails_with(RuntimeError("a bug"), monkeypatch)


UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []


def test_what_this_user_may_not_look_into_is_one_message_that_names_it(tmp_path: Path) -> None:
    """Python's own questions whether a file is there end in an error then."""
    closed = tmp_path / "closed"
    closed.mkdir()
    evaluate = ["evaluate", "--params", "demo", "--data", "digits", "--encoder"]
    out = ["--out", str(tmp_path / "out")]
    commands = {
        f"{closed}/o: Permission denied. Name another": ["data", "digits", "--params", "demo", "--out", f"{closed}/o"],
        f"{closed}/w.pth: Permission denied. Name": [*evaluate, "torchvision:resnet18", "--weights", f"{closed}/w.pth"],
        f"{closed}/config.json: not to be read (Permission denied). Name a file": [
            *evaluate,
            f"{closed}/encoder.safetensors",
        ],
        f"{closed}/f.npz: not to be read (Permission denied). Name a file": [
            "evaluate",
            "--params",
            "demo",
            "--features",
            f"{closed}/f.npz",
        ],
        f"{closed}/d/training.json: Permission denied.": ["publish", f"{closed}/d"],
        "File name too long. Name another": ["data", "digits", "--params", "demo", "--out", 300 * "x"],
    }
    calls = [[*command, *out] if "--out" not in command else command for command in commands.values()]
    code = f"from diffsiam import cli\nfor c in {calls!r}: print(cli.main(c), end='')"
    closed.chmod(0)
    try:
        done = subprocess.run(
            [*UNPRIVILEGED, sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        )
    finally:
        closed.chmod(0o700)
    assert done.stdout == len(commands) * "2"
    for line, said in zip(done.stderr.splitlines(), commands, strict=True):
        assert said in line
    assert not (tmp_path / "out").exists()


def test_any_other_error_of_the_system_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        fails_with(OSError(5, "Input/output error", "x"), monkeypatch)


@pytest.mark.parametrize("command", ["features --encoder e --data d", "summary --linear l --fewshot f --reference r"])
def test_a_folder_in_the_place_of_a_file_is_found_before_the_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--pretrain", "digits"] if command.startswith("summary") else []
    assert cli.main([*command.split(), *more, "--out", str(tmp_path), "--params", "{}"]) == 2
    assert f"--out {tmp_path}: is a folder, and {command.split()[0]} writes a file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["data digits", "evaluate --encoder e --data digits"])
def test_a_file_in_the_place_of_a_folder_is_found_before_the_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").touch()
    assert cli.main([*command.split(), "--out", str(tmp_path / "x"), "--params", "{}"]) == 2
    assert f"--out {tmp_path / 'x'}: is a file, and {command.split()[0]} writes a folder" in capsys.readouterr().err


def test_every_stage_of_the_command_line_runs_something() -> None:
    stages = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert list(stages) == list(commands.RUN)


def test_a_stage_writes_a_folder_where_its_rule_asks_for_several_files() -> None:
    """Snakemake's rules are the other place that knows: they name a folder by dirname, or as such."""
    rules = Path(__file__).resolve().parents[1] / "workflow" / "rules"
    found = {}
    for path in rules.glob("*.smk"):
        stages = re.split(r"\bdiffsiam (?=[a-z])", path.read_text())[1:]
        found |= {text.split()[0]: re.search(r"--out (\S+)", text)[1] for text in stages if "--out " in text}
    folders = {stage for stage, out in found.items() if out == "$(dirname" or "folder" in out}
    assert folders == set(cli._FOLDERS) - {"evaluate", "publish", "fetch"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_give_their_core_away_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen: list[str | None] = []
    monkeypatch.setattr(features, "run", lambda *args, **options: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    assert cli.main(COMMAND) == 0
    assert seen == [expected]


def test_dimensions_of_an_attribute_that_is_not_named_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--encoder", "e.safetensors", "--data", "d", "--out", "o"]
    assert cli.main(["probmask", *files, "--dims", "8", "--params", "demo"]) == 2
    assert "--dims: those of --attribute. Name one" in capsys.readouterr().err


def test_the_command_line_is_read_before_a_library_brings_openmp_along() -> None:
    code = "import sys, diffsiam.cli; print(sorted({'torch', 'numpy', 'sklearn', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_rules_command_without_a_data_set_takes_what_its_rule_does_not_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Path(__file__).resolve().parents[1] / "workflow" / "reference" / "disdiff_tables.csv"
    monkeypatch.setenv(params.VARIABLE, '{"overrides": {}, "by_method": {}}')
    words = ["disentangled", "--reference", str(reference), "--out", str(tmp_path / "t.csv"), "--params", "{}"]
    assert cli.main(words) == 0
