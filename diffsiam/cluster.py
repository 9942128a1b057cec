"""What profiles/slurm asks of SLURM before anything is planned: would the cluster run these jobs?"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from diffsiam.errors import UserError

_NOT_SUBMITTING = {"--mode", "-n", "--dry-run", "--dryrun", "--lint"}  # --mode: a job of a run that was checked


def check(account: str, partition: str, gpu_partition: str, gpus: int, nodes: int, training_minutes: int) -> None:
    """Let ``sbatch --test-only`` judge a job of each kind, and end the program with one message if it refuses.

    Args:
        account, partition, gpu_partition: empty for the cluster's default.
        gpus: of a training, over all its ``nodes``.
        training_minutes: time limit of a training.
    Raises:
        SystemExit: with status 2, after the message, when SLURM is not here, does not answer or refuses a job.
    """
    if _NOT_SUBMITTING.intersection(sys.argv):
        return
    try:
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
        _judge("partition", partition, account, ["--time=60"], 60)
        training = [f"--time={training_minutes}", f"--nodes={nodes}"] + [f"--gpus={gpus}"] * bool(gpus)
        _judge("gpu_partition", gpu_partition, account, training, training_minutes)
    except UserError as e:
        print(e, file=sys.stderr)
        sys.exit(2)


def _judge(key: str, partition: str, account: str, options: Sequence[str], minutes: int) -> None:
    where = [f"--partition={partition}"] if partition else []
    whose = [f"--account={account}"] if account else []
    status, answer = _run("sbatch", "--test-only", "--wrap=true", *where, *whose, *options)
    if status:
        raise _refused(key, partition, account, options, answer.strip().splitlines()[-1])
    # A time limit above the partition's is accepted by most clusters, and the job waits for ever.
    _, answer = _run("sinfo", "--noheader", "--format=%P %l")
    for name, limit in map(str.split, answer.splitlines()):
        if name.rstrip("*") == partition or (not partition and name.endswith("*")):
            most = _minutes(limit)
            if most is not None and minutes > most:
                raise _refused(key, name.rstrip("*"), account, options, f"its longest time limit is {most:g} minutes")


def _run(*command: str) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"profiles/slurm: `{' '.join(command)}` had no answer for a minute. If `sinfo` has none either, SLURM's "
            "controller is down: run the same command again when it is back."
        ) from None
    return done.returncode, done.stdout + done.stderr


def _refused(key: str, partition: str, account: str, options: Sequence[str], reason: str) -> UserError:
    return UserError(
        f"profiles/slurm/config.yaml: the cluster refuses jobs with {key}: {partition!r}, account: {account!r} and "
        f"{' '.join(options)}: {reason}.\n"
        "`sinfo -s` lists partitions and their time limits, `sacctmgr show associations user=$USER` your accounts. "
        "Edit the block at the top of that file and run the same command again; nothing was planned or submitted."
    )


def _minutes(limit: str) -> float | None:
    """``infinite`` to None; SLURM's ``[days-]hours:minutes:seconds`` or ``minutes:seconds`` to minutes."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60
