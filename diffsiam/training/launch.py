"""From one process to several: `torchrun` on this machine, or on each node of a SLURM allocation.

Nothing here imports PyTorch: the process is replaced by the launcher.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from diffsiam.errors import UserError

# Seconds that torchrun leaves its processes to save their state after SIGTERM; its own default is 30.
_SAVE_SECONDS = 100


def replace_process(module: str, arguments: Sequence[str], processes: int, nodes: int) -> NoReturn:
    """Go on as the launcher of ``processes`` copies of ``python -m module arguments...``.

    Args:
        processes: in all; one per GPU, or per share of the CPUs.
        nodes: that share them equally; above 1, the nodes of the allocation that this process runs in.
    Raises:
        UserError: the nodes cannot share the processes equally, or there is no allocation.
    """
    command = [*_launcher(processes, nodes), "-m", module, *arguments]
    os.execvp(command[0], command)


def _launcher(processes: int, nodes: int) -> list[str]:
    share, rest = divmod(processes, nodes)
    if rest:
        raise UserError(
            f"--processes {processes} --nodes {nodes}: every node runs the same number of processes. Choose a multiple "
            f"of {nodes}; in a Snakemake profile these are the resources gpu and nodes of the training rules."
        )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(share)]
    torchrun += ["--shutdown-timeout", str(_SAVE_SECONDS)]
    if nodes == 1:
        return [*torchrun, "--standalone"]
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            f"--nodes {nodes}: several nodes are reached through a SLURM allocation, and SLURM_JOB_ID is not set here. "
            "Run under `snakemake --workflow-profile profiles/slurm` or `sbatch`, or train on one node."
        )
    # One task per node, beside the step that this process is: the allocation's CPUs, memory and GPUs are shared.
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # The nodes meet at this one; the port keeps jobs that share it apart.
    meeting = f"{socket.gethostname()}:{20000 + int(job) % 20000}"
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", job, "--rdzv-endpoint", meeting]
    return [*srun, *torchrun, "--nnodes", str(nodes), *rendezvous]
