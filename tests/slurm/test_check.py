"""`cluster.check` on clusters that print more, or less, than SLURM does. The commands are stand-ins; test_messages.py
has the real ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yte

from diffsiam import cluster

PROFILE = Path(__file__).resolve().parents[2] / "profiles" / "slurm" / "config.yaml"
ACCEPTS = 'echo "sbatch: Job 42 to start at 2026-01-01T00:00:00 using 1 processors on nodes n1 in partition cpu" >&2'
PARTITIONS = 'echo "cpu* 1-00:00:00"; echo "gpu 2-00:00:00"'
DOWN = "Unable to contact slurm controller (connect failure)"


@pytest.fixture(autouse=True)
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the cluster's commands, which alone is looked into."""
    for name in ("bash", "sleep"):
        (tmp_path / name).symlink_to(next(p for d in os.environ["PATH"].split(":") if (p := Path(d, name)).exists()))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["snakemake", "tables"])
    cluster._limits.cache_clear()
    return tmp_path


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!{folder}/bash\n{text}\n")
    (folder / name).chmod(0o755)


def check(commands: Path, capsys: pytest.CaptureFixture[str], *, sbatch: str = ACCEPTS, sinfo: str | None = PARTITIONS,
          partition: str = "", minutes: int = 1440) -> tuple[bool, str]:  # fmt: skip
    """Whether the run goes on, and what is said."""
    put(commands, "sbatch", sbatch)
    if sinfo is not None:
        put(commands, "sinfo", sinfo)
    status = None
    try:
        cluster.check({"account": "", "qos": "", "constraint": ""}, partition, partition, "", 1, 1, minutes)
    except SystemExit as e:
        status = e.code
    assert status in (None, 2)
    return status is None, capsys.readouterr().err


@pytest.mark.parametrize(
    "sinfo",
    [
        PARTITIONS,
        f'echo "Welcome. Maintenance on Monday." >&2; {PARTITIONS}',
        f'echo "Welcome to the cluster."; echo; {PARTITIONS}; echo; echo done',
        f'echo "CLUSTER: one"; {PARTITIONS}',
        f'printf "Gr\\\\374sse\\\\n"; {PARTITIONS}',
    ],
)
def test_lines_that_are_not_sinfos_are_skipped_and_limits_still_found(
    sinfo: str, commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(commands, capsys, sinfo=sinfo) == (True, "")
    cluster._limits.cache_clear()
    went_on, said = check(commands, capsys, sinfo=sinfo, minutes=1441)
    assert not went_on
    assert "gpu_partition: 'cpu'" in said
    assert "its longest time limit is 1440 minutes" in said


def test_a_cluster_without_sinfo_is_used_and_the_check_that_is_left_out_is_named(
    commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    went_on, said = check(commands, capsys, sinfo=None)
    assert went_on
    assert "there is no sinfo here" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("sbatch", "sinfo"),
    [
        (ACCEPTS, f'echo "slurm_load_partitions: {DOWN}" >&2; exit 1'),
        (f'echo "sbatch: error: Batch job submission failed: {DOWN}" >&2; exit 1', PARTITIONS),
        (ACCEPTS, "exit 1"),
    ],
)
def test_a_controller_that_is_down_is_named_as_that_and_not_the_users_settings(
    sbatch: str, sinfo: str, commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    went_on, said = check(commands, capsys, sbatch=sbatch, sinfo=sinfo)
    assert not went_on
    assert "controller may be down" in said
    assert "Edit the block" not in said
    assert (DOWN in said) == ("exit 1" not in (sbatch, sinfo))
    assert len(said.splitlines()) == 1


def test_a_command_that_never_answers_is_a_controller_that_is_down(
    commands: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cluster.subprocess.run
    monkeypatch.setattr(cluster.subprocess, "run", lambda *a, **k: run(*a, **(k | {"timeout": 0.2})))
    went_on, said = check(commands, capsys, sinfo="exec sleep 30")
    assert not went_on
    assert "`sinfo` failed: no answer" in said


@pytest.mark.parametrize(
    ("sbatch", "reason"),
    [
        ("exit 3", "it gives no reason, and ends with status 3."),
        ('echo "  " >&2; exit 1', "it gives no reason, and ends with status 1."),
        ('echo "No budget left." >&2; exit 1', ": No budget left."),
        (
            'echo "sbatch: error: invalid partition: x" >&2; echo "allocation failure: Invalid name" >&2; exit 1',
            ": invalid partition: x; Invalid name.",
        ),
        (
            'echo "sbatch: error: This cluster needs --qos" >&2; echo "sbatch: error: Batch job submission failed: '
            'Invalid qos specification" >&2; echo; echo "Contact help@site" >&2; exit 1',
            ": This cluster needs --qos; Batch job submission failed: Invalid qos specification.",
        ),
    ],
)
def test_a_refusal_is_told_with_the_reasons_that_sbatch_gives(
    sbatch: str, reason: str, commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    went_on, said = check(commands, capsys, sbatch=sbatch)
    assert not went_on
    assert said.startswith("profiles/slurm/config.yaml: the cluster refuses jobs with partition: ''")
    assert said.splitlines()[0].endswith(reason)
    assert "Edit the block" in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("nodes", 0), ("gpus", None), ("gpus", -1), ("gpus", "2"), ("minutes", "1-00:00:00")]
)
@pytest.mark.parametrize("command", ["tables", "-n"])
def test_a_number_of_the_block_that_is_none_is_named_by_its_key(
    name: str, value: Any, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["snakemake", command])
    numbers: dict[str, Any] = {"gpus": 1, "nodes": 1, "minutes": 60} | {name: value}
    with pytest.raises(SystemExit):
        cluster.check({}, "", "", "", **numbers)
    key = "training_minutes" if name == "minutes" else name
    assert capsys.readouterr().err.startswith(f"profiles/slurm/config.yaml: {key}: met {value!r}. Needed is a whole")


def test_a_command_that_may_not_be_run_is_named(commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(commands, "gone", "")
    (commands / "gone").unlink()
    put(commands, "sbatch", ACCEPTS)
    (commands / "sinfo").write_text("#!/no/such/interpreter\n")
    (commands / "sinfo").chmod(0o755)
    went_on, said = check(commands, capsys, sinfo=None)
    assert not went_on
    assert "`sinfo` cannot be run" in said


def test_a_job_of_each_kind_is_judged_with_all_that_the_cluster_asks_for(commands: Path) -> None:
    put(commands, "sbatch", f'echo "$*" >> {commands}/asked; {ACCEPTS}')
    put(commands, "sinfo", PARTITIONS)
    cluster.check({"account": "me", "qos": "long", "constraint": "a|b"}, "cpu", "gpu", "a100", 4, 2, 1440)
    judged = [set(line.split()) for line in (commands / "asked").read_text().splitlines()]
    everywhere = {"--test-only", "--wrap=true", "--account=me", "--qos=long", "--constraint=a|b"}
    assert judged == [
        everywhere | {"--partition=cpu", "--time=60"},
        everywhere | {"--partition=gpu", "--time=1440", "--nodes=2", "--gpus=a100:4"},
    ]


def profile(monkeypatch: pytest.MonkeyPatch, *edits: tuple[str, str]) -> dict[str, Any]:
    """profiles/slurm as Snakemake reads it, after edits of the block at its top."""
    monkeypatch.setattr(sys, "argv", ["snakemake", "--dry-run"])  # nothing is asked of a cluster
    text = PROFILE.read_text()
    for old, new in edits:
        assert text.count(f"  {old}") == 1
        text = text.replace(f"  {old}", f"  {new}")
    return yte.process_yaml(text)


def test_the_block_of_the_profile_reaches_the_jobs_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    whose = ('qos: ""', "qos: long"), ('constraint: ""', 'constraint: "a|b&c"'), ('gpu_type: ""', "gpu_type: a100")
    found = profile(monkeypatch, *whose, ("gpus: 1", "gpus: 4"), ("nodes: 1", "nodes: 2"))
    assert found["default-resources"] == {
        **{"slurm_account": "", "slurm_partition": ""},
        **{"qos": "'long'", "constraint": "'a|b&c'"},  # quoted: Snakemake reads values as expressions
    }
    training, pictures = (found["set-resources"][rule] for rule in ("representation_simsiam", "generate_denoise"))
    assert training["gpu_model"] == pictures["gpu_model"] == "'a100'"
    assert training["slurm_extra"].endswith(" --gpus-per-node=a100:2'")


def test_what_the_block_leaves_empty_asks_the_cluster_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = profile(monkeypatch)
    assert found["default-resources"] == {"slurm_account": "", "slurm_partition": ""}
    assert [rule for rule, asked in found["set-resources"].items() if "gpu_model" in asked] == []
    on_cpus = profile(monkeypatch, ('gpu_type: ""', "gpu_type: a100"), ("gpus: 1", "gpus: 0"))
    assert [rule for rule, asked in on_cpus["set-resources"].items() if "gpu_model" in asked] == []


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("infinite", None),
        ("UNLIMITED", None),
        ("n/a", None),
        ("NOT_SET", None),
        ("60", 60),
        ("30:30", 30.5),
        ("2:00:00", 120),
        ("1-00", 1440),
        ("1-06:30", 1830),
        ("7-00:00:00", 10080),
    ],
)
def test_time_limits_in_all_of_slurms_forms(limit: str, minutes: float | None) -> None:
    assert cluster._minutes(limit) == minutes
