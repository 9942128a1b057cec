"""What profiles/slurm asks of SLURM before anything is planned: would the cluster run these jobs?"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from diffsiam.errors import UserError

_DOWN = "contact slurm controller"  # what all of SLURM's commands say then
_NOT_SUBMITTING = {"--mode", "-n", "--dry-run", "--dryrun", "--lint"}  # --mode: a job of a run that was checked


def check(
    whose: Mapping[str, str], partition: str, gpu_partition: str, gpu_type: str, gpus: int, nodes: int, minutes: int
) -> None:
    """Let ``sbatch --test-only`` judge a job of each kind, and end the program with one message if it refuses.

    Args:
        whose: account, qos and constraint of every job; empty for the cluster's default.
        partition, gpu_partition, gpu_type: empty for the cluster's default.
        gpus: of a training, over all its ``nodes``.
        minutes: time limit of a training.
    Raises:
        SystemExit: with status 2, after the message, when SLURM is not here, does not answer or refuses a job.
    """
    try:
        for name, value, least in (("gpus", gpus, 0), ("nodes", nodes, 1), ("training_minutes", minutes, 1)):
            if type(value) is not int or value < least:
                raise UserError(
                    f"profiles/slurm/config.yaml: {name}: met {value!r}. Needed is a whole number, at least {least}, "
                    "without quotes and colons."
                )
        if _NOT_SUBMITTING.intersection(sys.argv):
            return
        if shutil.which("sbatch") is None:
            raise UserError(
                "profiles/slurm: there is no sbatch on this machine. Run the same command on the cluster's login node, "
                "or without a cluster: `snakemake --cores all tables`."
            )
        if gpus % nodes or (nodes > 1 and not gpus):
            raise UserError(
                f"profiles/slurm/config.yaml: gpus: {gpus} with nodes: {nodes}. Every node gets the same number of "
                "GPUs, and at least one: choose a multiple of nodes."
            )
        _judge("partition", partition, whose, ["--time=60"], 60)
        kind = f"{gpu_type}:" if gpu_type else ""
        training = [f"--time={minutes}", f"--nodes={nodes}"] + [f"--gpus={kind}{gpus}"] * bool(gpus)
        _judge("gpu_partition", gpu_partition, whose, training, minutes)
    except UserError as e:
        print(e, file=sys.stderr)
        sys.exit(2)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; those that are over, or a cluster that does not answer, are not this function's business."""
    if jobs and shutil.which("scancel"):
        subprocess.run(["scancel", *jobs], capture_output=True, check=False)


def _judge(key: str, partition: str, whose: Mapping[str, str], options: Sequence[str], minutes: int) -> None:
    where = [f"--{name}={value}" for name, value in {"partition": partition, **whose}.items() if value]
    done = _run("sbatch", "--test-only", "--wrap=true", *where, *options)
    if done.returncode:
        reason = _reason(done)
        raise _down("sbatch", reason) if _DOWN in reason else _refused(key, partition, whose, options, reason)
    # A time limit above the partition's is accepted by most clusters, and the job waits for ever.
    for name, limit in _limits():
        if name.rstrip("*") == partition or (not partition and name.endswith("*")):
            most = _minutes(limit)
            if most is not None and minutes > most:
                raise _refused(key, name.rstrip("*"), whose, options, f"its longest time limit is {most:g} minutes")


@functools.cache
def _limits() -> tuple[tuple[str, str], ...]:
    """Partitions and their time limits as `sinfo` prints them, the default one with a star."""
    if shutil.which("sinfo") is None:
        print(
            "profiles/slurm: there is no sinfo here; time limits were not compared with the cluster's.", file=sys.stderr
        )
        return ()
    done = _run("sinfo", "--noheader", "--format=%P %l")
    if done.returncode:
        raise _down("sinfo", _reason(done))
    # Sites wrap their commands: what is not a name and a limit is not sinfo's.
    found = (re.fullmatch(r"(\S+)\s+(\S+)", line.strip()) for line in done.stdout.splitlines())
    return tuple((line[1], line[2]) for line in found if line)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise _down(command[0], "no answer for a minute") from None
    except OSError as e:
        raise UserError(f"profiles/slurm: `{command[0]}` cannot be run ({e}). Ask your cluster's support.") from None


def _down(command: str, reason: str) -> UserError:
    return UserError(
        f"profiles/slurm: `{command}` failed: {reason}. SLURM's controller may be down: `scontrol ping` tells. Run the "
        "same command again when it is back; nothing was planned or submitted."
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed gives as its errors; its last words where it marks none."""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [found[1] for line in lines if (found := re.search(r"\b(?:error|failure): *(.+)", line))]
    return "; ".join(errors or lines[-1:]).rstrip(".") or f"it gives no reason, and ends with status {done.returncode}"


def _refused(key: str, partition: str, whose: Mapping[str, str], options: Sequence[str], reason: str) -> UserError:
    named = {key: partition} | {name: value for name, value in whose.items() if value}
    listed = ", ".join(f"{name}: {value!r}" for name, value in named.items())
    return UserError(
        f"profiles/slurm/config.yaml: the cluster refuses jobs with {listed} and {' '.join(options)}: {reason}.\n"
        "`sinfo -s` lists partitions and their time limits, `sacctmgr show associations user=$USER` your accounts. "
        "Edit the block at the top of that file and run the same command again; nothing was planned or submitted."
    )


def _minutes(limit: str) -> float | None:
    """SLURM's ``[days-]hours:minutes:seconds``, ``days-hours[:minutes]``, ``minutes[:seconds]`` to minutes;
    ``infinite`` and the like to None."""
    days, dash, clock = limit.rpartition("-")
    words = clock.split(":")
    if not all(word.isdecimal() for word in [*words, *([days] if dash else [])]) or len(words) > 3:
        return None
    numbers = [int(word) for word in words]
    if not dash and len(numbers) < 3:
        numbers.insert(0, 0)  # no hours
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60
