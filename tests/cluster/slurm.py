"""A real Slurm on loopback, in one folder: munged, slurmctld and one slurmd for each of two nodes.

Debian: `apt-get install --no-install-recommends slurmctld slurmd slurm-client munge`. Both nodes
are this machine (two NodeNames, one NodeHostname), without a network between them.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
NODES = ("node1", "node2")
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=2
OverTimeLimit=0
MinJobAge=10
InactiveLimit=0
SlurmdTimeout=30
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
"""


@dataclass
class Slurm:
    """A running cluster; `close` ends every process of it."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this cluster needs; dask stays on loopback too."""
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "DASK_JOBQUEUE__SLURM__INTERFACE": "lo",
        }

    def start(self) -> None:
        """Returns once both nodes are idle.

        Raises:
            AssertionError: a daemon does not come up; with the end of its log.
        """
        for name in ("state", *(f"spool.{n}" for n in NODES)):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        ports = free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={p} CPUs=1 RealMemory=64000"
            for n, p in zip(NODES, ports[1:], strict=True)
        )
        text = SLURM_CONF.format(
            host=host, ctld=ports[0], user="root", folder=self.folder, nodes=nodes
        )
        (self.folder / "slurm.conf").write_text(text)
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munged.seed",
            "--num-threads=1",
        )  # fmt: skip
        until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._spawn("slurmctld", "-D", "-i", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self._spawn("slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))
        until(lambda: self.states() == ["idle"] * len(NODES), f"slurm\n{self.logs()}")

    def states(self) -> list[str]:
        """Of the nodes, in order."""
        said = self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%t", check=False)
        return said.split()

    def jobs(self, state: str = "all") -> list[str]:
        """Ids of the jobs in the queue."""
        return self.call("squeue", "-h", "-t", state, "-o", "%i").split()

    def call(self, *command: str, check: bool = True) -> str:
        """Output of a command of Slurm."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def workers(self, job: str = "") -> list[int]:
        """Pids of our dask workers in the jobs, or one job, of this cluster."""
        found, conf = [], f"SLURM_CONF={self.folder}/slurm.conf\0".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes()
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = conf in environment and f"SLURM_JOB_ID={job}".encode() in environment
            if ours and words[1:2] == [b"-m"] and b"_worker" in words[2]:
                found.append(int(path.name))
        return found

    def logs(self) -> str:
        """The end of every daemon's log."""
        return "\n".join(
            f"{p.name}: {p.read_text(errors='replace')[-1500:]}" for p in self.folder.glob("*.log")
        )

    def close(self) -> None:
        """Cancel every job and wait for its processes, then end the daemons."""
        self.call("scancel", "--me", check=False)
        for _ in range(400):
            if not self.workers():
                break
            time.sleep(0.05)
        for process in reversed(self.processes):
            process.kill()  # slurmctld takes seconds to save its state
            process.wait()

    def _spawn(self, program: str, *arguments: str) -> None:
        path = _which(program)
        assert path is not None
        output = (self.folder / f"{program}.out").open("ab")
        self.processes.append(
            subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | self.environment,
                start_new_session=True,
            )  # fmt: skip
        )
        output.close()


def missing() -> str:
    """What this machine lacks for these tests."""
    lacking = [name for name in PROGRAMS if _which(name) is None]
    if importlib.util.find_spec("dask_jobqueue") is None:
        lacking.append("dask-jobqueue (the extra cluster)")
    return ", ".join(lacking if os.geteuid() == 0 else [*lacking, "root"])


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for each in sockets:
        each.close()
    return ports


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for `condition`.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)


needs_slurm = pytest.mark.skipif(bool(missing()), reason=f"for Slurm is missing: {missing()}")


if __name__ == "__main__":  # for a look by hand: python -m tests.cluster.slurm FOLDER
    cluster = Slurm(Path(sys.argv[1]).absolute())
    try:
        cluster.start()
        sys.stderr.write(f"export SLURM_CONF={cluster.folder}/slurm.conf\n")
        while True:
            time.sleep(1)
    finally:
        cluster.close()
