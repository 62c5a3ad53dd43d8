"""A SLURM of two virtual nodes on this machine, with everything it writes in one folder and every port on the loopback interface's own numbers.

No munge, no cgroups, no service of the system: the daemons run in the foreground as children of the tests and end with them. Partition `high` preempts jobs of
`low`, which are queued again. SLURM lets a job that was queued again rest until its credential has expired (two minutes, and it starts after about 140
seconds); here credentials are good for a few seconds (`cred_expire`), which is the one setting that differs from what a cluster would have.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=drift
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
PropagateResourceLimits=NONE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1_port} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2_port} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 MaxTime=INFINITE PreemptMode=REQUEUE
PartitionName=high Nodes=n1,n2 PriorityTier=10 MaxTime=INFINITE PreemptMode=OFF
"""


def missing() -> list[str]:
    """Programs of SLURM that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Slurm:
    """The cluster. `environment` is what a user of it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        controller_port, n1_port, n2_port = free_ports(3)
        for name in ("state", *NODES):
            (folder / name).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(folder=folder, host=host, controller_port=controller_port, n1_port=n1_port, n2_port=n2_port)
        (folder / "slurm.conf").write_text(text)
        self.daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start("slurmctld", "-D", "-i")
            for node in NODES:
                self._start("slurmd", "-D", "-N", node)
            until(lambda: self.ask("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") == "2", "the nodes to be idle", 120)
        except BaseException:
            self.close()
            raise

    def _start(self, program: str, *arguments: str) -> None:
        with (self.folder / "daemons.out").open("ab") as out:
            line = [program, *arguments, "-f", self.environment["SLURM_CONF"]]
            self.daemons.append(subprocess.Popen(line, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=self.environment))

    def ask(self, *line: str) -> str:
        """What one of SLURM's programs says; nothing where it fails."""
        return subprocess.run(line, env=self.environment, capture_output=True, text=True, check=False).stdout.strip()

    def do(self, *line: str) -> str:
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def queue(self, job: str) -> list[str]:
        """States of a job's tasks that are not over."""
        return [line for line in self.ask("squeue", "-h", "-r", "-j", job, "-o", "%T").splitlines() if line]

    def restarts(self, job: str) -> int:
        """How often tasks of a job were queued again."""
        told = self.ask("scontrol", "show", "job", job)
        return sum(int(word.removeprefix("Restarts=")) for word in told.split() if word.startswith("Restarts="))

    def close(self) -> None:
        """End all jobs, then the daemons."""
        if self.daemons:
            self.ask("scancel", "--user", "root")
            until(lambda: self.ask("squeue", "-h") == "", "jobs to be gone", 30, or_fail=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def said(self) -> str:
        """The ends of the daemons' logs, for a failed test."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log")))


def until(condition: Callable[[], object], what: str, seconds: float, *, or_fail: bool = True) -> None:
    """Look now and then until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            assert not or_fail, f"waited {seconds:g} s for {what}"
            return
        time.sleep(0.1)
