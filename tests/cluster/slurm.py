"""A SLURM cluster of two nodes on this machine, of Debian's packages, with all its files in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
GRACE_SECONDS = 60
FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "MASTER_")

# A requeued job waits for cred_expire seconds, 120 by default. No plugin needs systemd, cgroups or a database.
CONFIG = f"""
ClusterName=test
SlurmctldHost={{host}}(127.0.0.1)
SlurmctldPort={{ports[0]}}
SlurmUser=root
AuthInfo=socket={{folder}}/munge.socket,cred_expire=5
SlurmctldPidFile={{folder}}/slurmctld.pid
SlurmdPidFile={{folder}}/%n.pid
StateSaveLocation={{folder}}/state
SlurmdSpoolDir={{folder}}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
SlurmdTimeout=30
NodeName=node1 NodeHostname={{host}} NodeAddr=127.0.0.1 Port={{ports[1]}} CPUs=2
NodeName=node2 NodeHostname={{host}} NodeAddr=127.0.0.1 Port={{ports[2]}} CPUs=2
PartitionName=low Nodes=node[1-2] Default=YES PriorityTier=1 GraceTime={GRACE_SECONDS}
PartitionName=high Nodes=node[1-2] PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """A cluster of the nodes ``node1`` and ``node2``, on which jobs of partition ``high`` preempt those of ``low``.

    Args:
        folder: Empty folder for all files of the cluster; its path needs to be short, and have no spaces.

    Attributes:
        environment: Environment of programs that use the cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start munge, the controller and both nodes, and wait until the nodes accept jobs."""
        for name in ("state", "node1", "node2"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host, ports = socket.gethostname().split(".")[0], _find_free_ports(3)
        (self.folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=self.folder, ports=ports))
        names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
        files = [f"--{name}={self.folder}/munge.{name.removesuffix('-file')}" for name in names]
        self._start_daemon("munged", "--foreground", "--force", *files)
        wait_until((self.folder / "munge.socket").exists, 60, "munge")
        self._start_daemon("slurmctld", "-D", "-i")
        self._start_daemon("slurmd", "-D", "-N", "node1")
        self._start_daemon("slurmd", "-D", "-N", "node2")
        states = ("sinfo", "--noheader", "--partition=low", "--format=%T")
        wait_until(lambda: self._try(*states).stdout.split() == ["idle"], 60, "both nodes")

    def stop(self) -> None:
        """End all jobs, and then the daemons."""
        self._try("scancel", "--user=root")
        with suppress(AssertionError):
            wait_until(lambda: not self._try("squeue", "--noheader").stdout, 90, "the end of the jobs")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()

    def run(self, *command: str, **settings: str) -> str:
        """Run one of SLURM's programs in this folder and return its output."""
        done = self._try(*command, **settings)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def read_job(self, job: str) -> dict[str, str]:
        """Return what the controller knows of a job, such as ``JobState``."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in reversed(words) if "=" in word)

    def wait_for(self, job: str, state: str, seconds: float = 240) -> None:
        """Wait for a state of a job, such as COMPLETED."""
        wait_until(lambda: self.read_job(job)["JobState"] == state, seconds, f"{state} of job {job}")

    def _start_daemon(self, *command: str) -> None:
        log = self.folder / f"{command[-1].strip('-') if command[0] == 'slurmd' else command[0]}.log"
        with log.open("ab") as file:
            daemon = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self._daemons.append(daemon)

    def _try(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | settings
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def skip_unless_slurm_can_run() -> None:
    """Skip the tests on a machine without SLURM, or without root's rights to start it."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("needs root, which SLURM's daemons run as")


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} seconds for {what}"
        time.sleep(0.2)


def _find_free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
