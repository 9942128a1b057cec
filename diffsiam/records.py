"""Snakemake's records of finished jobs: checked against the files they speak of, and made fit to travel with git.

Snakemake keeps one JSON record per output under ``.snakemake/metadata``: the rule's code and params, its inputs and
their checksums. Where a file has no record it is trusted, and where it has one nothing asks whether the file is still
what the job left. So a record is *sealed* at the end of the run: it gets the checksum of its output, and loses what no
plan and no report reads and what differs between equal runs. Before anything is planned, `check` compares every output
that exists with its record.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffsiam import runtime
from diffsiam.errors import UserError

FORMAT = 6  # of Snakemake 9.27, the one that the tests in tests/dvc drive
RESTORE = "DIFFSIAM_RESTORE"  # environment variable of workflow/scripts/restore.sh: take over files without records

# What a sealed record keeps: what a plan compares, and what `snakemake --report` shows.
_KEPT = ("rule", "code", "params", "input", "input_checksums", "log", "software_stack_hash", "record_format_version")
_TIMES = ("starttime", "endtime")
_BY_HAND = "by hand"  # in the place of a rule

_FOLDER = Path(".snakemake")
_RECORDS, _INCOMPLETE, _LOCKS = _FOLDER / "metadata", _FOLDER / "incomplete", _FOLDER / "locks"
_CHECKSUMS = _FOLDER / "checksums.json"


def check(jobs: Iterable[Sequence[str]], record_format: int) -> None:
    """Compare outputs with their records.

    Args:
        jobs: what the rules declare as outputs of each job that has left any, relative to the working directory.
        record_format: the format that the running Snakemake writes.
    Raises:
        UserError: the running Snakemake writes another format than `FORMAT`; outputs have no record, or one of
            another format; outputs are not what their records say. With `RESTORE` set, only the first and the last.
    """
    if record_format != FORMAT:
        raise UserError(
            f"This Snakemake writes records of format {record_format}; {FORMAT} is the tested one, and under another "
            "an edit of params or code could go unnoticed. Install the versions of requirements.lock: "
            "`pip install -r requirements.lock`."
        )
    unknown, changed = [], []
    checksums = _Checksums()
    for output in _complete(jobs):
        record = _read(output)
        if _incomplete(output):
            continue  # a job is at work here, or was killed: Snakemake's own business
        if record.get("record_format_version") != FORMAT:
            unknown.append(output)
        elif "sha256" in record and checksums.of(output) != record["sha256"]:
            changed.append(output)
        elif "sha256" not in record and not _untouched(output, record):
            unknown.append(output)
    checksums.save()
    if RESTORE in os.environ:
        unknown = []
    if unknown or changed:
        raise UserError(_message(unknown, changed))


def _complete(jobs: Iterable[Sequence[str]]) -> Iterator[str]:
    """Outputs that exist. Those that were declared only after their job ran get the record of its other outputs:
    Snakemake compares a job's params, code and inputs with its records only where every output has one."""
    for outputs in jobs:
        known = [output for output in outputs if _place(_RECORDS, output).exists()]
        for output in outputs:
            if os.path.exists(output):
                yield output
            elif known and output not in known:
                runtime.write_json(_place(_RECORDS, output), _read(known[0]))


def removed(outputs: Iterable[str]) -> list[str]:
    """Those of ``outputs`` that were made, and are not there any more."""
    return [output for output in outputs if _read(output) and not os.path.exists(output)]


def seal(jobs: Iterable[Sequence[str]]) -> None:
    """Seal the records of ``jobs``, as in `check`, that Snakemake wrote since the last time, one key per line."""
    checksums = _Checksums()
    for output in filter(os.path.exists, itertools.chain.from_iterable(jobs)):
        record = _read(output)
        new = record.get("record_format_version") == FORMAT and "sha256" not in record
        if new and not _incomplete(output) and _untouched(output, record):
            sealed = {key: record[key] for key in _KEPT}
            # Snakemake's own hash differs from run to run; the report only needs one number per job.
            sealed["job_hash"] = zlib.crc32(json.dumps(sealed).encode())
            sealed |= {key: round(record[key], 1) for key in _TIMES}
            sealed["sha256"] = checksums.of(output)
            runtime.write_json(_place(_RECORDS, output), sealed)
    checksums.save()


def by_hand(command: str, out: Path, began: float) -> None:
    """Record what a command that no rule gave wrote among the results: as made by that command. No rule's code is that,
    so Snakemake plans the file anew where a run needs it; without a record it would refuse to plan at all.

    Args:
        out: the file or folder that the command was told to write; it may leave files beside.
        began: when it was started, in seconds since the epoch; what is older is not its own.
    """
    place, here = Path(os.path.abspath(out)), Path.cwd()
    if not Path("Snakefile").is_file() or not place.is_relative_to(here / "results"):
        return
    for path in place.rglob("*") if place.is_dir() else place.parent.iterdir():
        changed = path.stat().st_mtime
        if path.is_file() and changed >= began - 1:  # some file systems count whole seconds
            record: dict[str, Any] = dict.fromkeys(_KEPT) | {
                "params": [],
                "input": [],
                "input_checksums": {},
                "log": [],
            }
            record |= {"rule": _BY_HAND, "code": command, "record_format_version": FORMAT}
            record |= {"job_hash": 0, "starttime": began, "endtime": changed}
            runtime.write_json(_place(_RECORDS, path.relative_to(here).as_posix()), record)


def times(root: Path, output: Path) -> tuple[float, float] | None:
    """When the rule that made ``output`` began and ended, in seconds since the epoch, by the records in ``root``; None
    where no rule did."""
    record = _read(output.relative_to(root).as_posix(), root)
    return None if not record or record["rule"] == _BY_HAND else (record[_TIMES[0]], record[_TIMES[1]])


def clear_dead_locks() -> None:
    """Remove the locks of a run that was killed, and tell the runs to come that this one lives.

    Snakemake's locks do not name their owner, so a killed run blocks the next until a person unlocks. Here every run
    holds a shared lock of the system's on one file, which the system drops with the process. Nothing is removed while
    another run in this folder lives, or while jobs that a killed run submitted may still run on a cluster.
    """
    _FOLDER.mkdir(exist_ok=True)
    alive = open(_FOLDER / "alive", "w")  # noqa: SIM115 - held until the process ends
    _HELD.append(alive)
    with contextlib.suppress(OSError):  # another run lives, or the file system has no such locks
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if any(_LOCKS.glob("*.lock")) and not submitted():
            shutil.rmtree(_LOCKS)
            print("Removed the locks of a run that was killed in this folder.", file=sys.stderr)
    with contextlib.suppress(OSError):
        fcntl.flock(alive, fcntl.LOCK_SH)


_HELD: list[Any] = []


def submitted() -> list[str]:
    """The cluster's names of the jobs that Snakemake handed to it and has not seen the end of."""
    markers = (json.loads(path.read_text()) for path in _INCOMPLETE.rglob("*") if path.is_file())
    return sorted({str(marker["external_jobid"]) for marker in markers if marker["external_jobid"]})


class _Checksums:
    """Checksums of files; each file is read once for as long as its time stamp, size and inode stay."""

    def __init__(self) -> None:
        self.known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.known = json.loads(_CHECKSUMS.read_text())
        self.changed = False

    def of(self, path: str) -> str:
        stat = os.stat(path)
        now = [stat.st_mtime_ns, stat.st_size, stat.st_ino]
        if self.known.get(path, [])[:3] != now:
            self.known[path] = [*now, runtime.sha256(path)]
            self.changed = True
        return self.known[path][3]

    def save(self) -> None:
        if self.changed:
            runtime.write_json(_CHECKSUMS, {path: entry for path, entry in self.known.items() if os.path.exists(path)})


def _place(folder: Path, output: str) -> Path:
    """Where Snakemake keeps what it knows of ``output``: its path in base64, in pieces that make file names."""
    name = urlsafe_b64encode(output.encode()).decode()
    longest = os.pathconf(".", "PC_NAME_MAX") - 1
    *heads, last = [name[i : i + longest] for i in range(0, len(name), longest)]
    return folder.joinpath(*(f"@{head}" for head in heads), last)


def _read(output: str, root: Path = Path()) -> dict[str, Any]:
    """The record in ``root``, or an empty one where there is none or it is damaged."""
    try:
        return json.loads((root / _place(_RECORDS, output)).read_text())
    except (OSError, ValueError):
        return {}


def _incomplete(output: str) -> bool:
    return _place(_INCOMPLETE, output).exists()


def _untouched(output: str, record: dict[str, Any]) -> bool:
    """Whether the file is as Snakemake saw it when it wrote the (unsealed) record."""
    return record.get("endtime") in (os.stat(output).st_mtime, os.lstat(output).st_mtime)


# A run for what was made from a file does not miss it.
_ANEW = "delete them, and ask for them by name: `snakemake --cores all FILE ...`."


def _message(unknown: list[str], changed: list[str]) -> str:
    parts = ["Files in results/ and Snakemake's records of them (.snakemake/metadata) disagree: nothing was planned."]
    if changed:
        parts += [
            f"Not what the record says, because edited, damaged or of another commit: {_names(changed)}\n"
            f"  `dvc checkout --force` brings them back from DVC's cache; or {_ANEW}"
        ]
    if unknown:
        parts += [
            f"No record of the params and code that made them: {_names(unknown)}\n"
            "  `make restore` takes them over where DVC knows them under the params and code of this checkout; or "
            f"{_ANEW}"
        ]
    return "\n".join(parts)


def _names(paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(sorted(paths)[:5]) + more
