"""A real SLURM cluster of two nodes on this machine, for as long as a ``with`` block lasts.

``python -m tests.slurm.cluster COMMAND...`` runs a command while the cluster is up. Keys, state, logs and the fake
GPUs lie in a temporary folder; only its configuration is linked to /etc/slurm, since the executor plugin takes
SLURM_CONF out of a job's environment. A configuration that is already there is never touched. Where the kernel lets
us, the cluster has a network of its own that leads nowhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ETC = Path("/etc/slurm")
NODES = ("node1", "node2")
CORES, MEMORY_MB, GPUS = 8, 40_000, 2  # of each node, as it tells SLURM; the machine may have less
NAME = "diffsiam_tests"
LIMIT = "7-00:00:00"  # of a job

# Memory is polled and a job above its request is killed, as cgroups do it on a cluster; a job that lost its node waits
# as long as credentials last; the rest is what a cluster without accounting has.
CONF = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdParameters=config_overrides
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
MinJobAge=3600
KillWait=10
SlurmdTimeout=120
MailProg=/bin/true
JobSubmitPlugins=lua
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime={limit} State=UP
"""

# Accounts are known to SLURM's database, which this cluster lacks; it refuses one as clusters do that have it.
JOB_SUBMIT = """
function slurm_job_submit(job, partitions, uid)
   if job.account == "refused" then return slurm.ESLURM_INVALID_ACCOUNT end
   return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
"""
CONFIGURATION = ("slurm.conf", "gres.conf", "job_submit.lua")


def missing() -> str:
    """Why no cluster can run here; empty where one can."""
    programs = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if programs:
        return f"{', '.join(programs)} not installed: apt-get install slurm-wlm munge"
    if os.geteuid():
        return "only root can start slurmd and place /etc/slurm/slurm.conf"
    if (ETC / "slurm.conf").exists() and not _left_behind(ETC / "slurm.conf"):
        return f"{ETC}/slurm.conf is another cluster's"
    return ""


def _left_behind(configuration: Path) -> bool:
    """Whether it is a link to a cluster of ours that was killed before its end: the daemons died with the tests."""
    ours = configuration.is_symlink() and f"ClusterName={NAME}\n" in configuration.read_text()
    return ours and subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, check=False).returncode == 1


@dataclass
class Cluster:
    """A running cluster; its daemons can be stopped and started again.

    Attributes:
        inside: command that runs another one where the cluster is seen.
        isolated: whether that is a network of its own.
    """

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]]
    inside: list[str]
    isolated: bool = False

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                [*self.inside, *command], stdout=out, stderr=out, start_new_session=True, preexec_fn=_die_with_parent
            )

    def stop(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def start_controller(self) -> None:
        self.start("slurmctld", "slurmctld", "-D")

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-N", node)

    def ask(self, *command: str) -> str:
        """Output of a SLURM command."""
        return subprocess.run([*self.inside, *command], check=True, capture_output=True, text=True).stdout

    def wait(self, timeout: float = 60) -> None:
        """Until the controller answers and every node takes jobs."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.CalledProcessError):
                if set(self.ask("sinfo", "--noheader", "--Node", "--format=%t").split()) <= {"idle", "mix", "alloc"}:
                    return
            time.sleep(0.3)
        logs = "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in self.folder.glob("*.log"))
        raise RuntimeError(f"no node became idle in {timeout} s\n{logs}")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start munged, slurmctld and one slurmd per node of `NODES`; stop them and remove what they left at the end."""
    reason = missing()
    if reason:
        raise RuntimeError(reason)
    folder.chmod(0o755)
    (folder / "state").mkdir()
    here = Cluster(folder, {}, ["env", "--unset=SLURM_CONF"])  # which hides it from all other tests
    linked = [ETC / name for name in CONFIGURATION]
    try:
        _configure(folder)
        for path in linked:
            path.unlink(missing_ok=True)
            path.symlink_to(folder / path.name)
        _isolate(here)
        here.start("munged", "munged", "--foreground", *_munge_options(folder))
        here.start_controller()
        for node in NODES:
            here.start_node(node)
        here.wait()
        yield here
    finally:
        if "slurmctld" in here.daemons:
            command = [*here.inside, "scancel", "--full", "--signal=KILL", "--user=root"]
            subprocess.run(command, check=False, timeout=30)
        for name in reversed(here.daemons.copy()):
            here.stop(name)
        _kill_jobs()
        for path in linked:
            path.unlink(missing_ok=True)


def _kill_jobs() -> None:
    """End what a node that went down lost sight of."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"SLURM_CLUSTER_NAME={NAME}\0".encode() in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)


def _isolate(here: Cluster) -> None:
    """A network namespace with a loopback device that also answers to this machine's own address."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return
    here.start("network", "unshare", "--net", "sleep", "infinity")
    own = f"/proc/{here.daemons['network'].pid}/ns/net"
    while os.readlink(own) == os.readlink("/proc/self/ns/net"):
        time.sleep(0.05)
    here.inside, here.isolated = ["nsenter", f"--net={own}", *here.inside], True
    here.ask("ip", "link", "set", "lo", "up")
    # Names are looked up only where there is an address besides 127.*; 192.0.2.* belongs to nobody.
    for address in {"192.0.2.1", socket.gethostbyname(socket.gethostname())}:
        if not address.startswith("127."):
            here.ask("ip", "address", "add", f"{address}/32", "dev", "lo")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no daemon outlives the tests, however they end


def _configure(folder: Path) -> None:
    nodes, gres = [], []
    for node in NODES:
        files = [folder / f"{node}-gpu{i}" for i in range(GPUS)]
        for file in files:
            os.mknod(file, 0o666 | 0o020000, os.makedev(1, 3))  # what /dev/null is
            gres.append(f"NodeName={node} Name=gpu File={file}")
        nodes.append(
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={_free_port()} "
            f"CPUs={CORES} RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN"
        )
    (folder / "gres.conf").write_text("\n".join(gres) + "\n")
    (folder / "slurm.conf").write_text(
        CONF.format(
            name=NAME,
            host=socket.gethostname(),
            port=_free_port(),
            folder=folder,
            nodes="\n".join(nodes),
            limit=LIMIT,
        )
    )
    (folder / "job_submit.lua").write_text(JOB_SUBMIT)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)


def _munge_options(folder: Path) -> list[str]:
    return [
        f"--socket={folder}/munge.socket",
        f"--key-file={folder}/munge.key",
        f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munge.log",
        f"--seed-file={folder}/munge.seed",
        "--force",  # /tmp may be written to by all
    ]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name, cluster(Path(name)) as running:
        sys.exit(subprocess.run([*running.inside, *sys.argv[1:]], check=False).returncode)
