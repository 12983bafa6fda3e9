"""The processes of one stage instance, started by torchrun: on this machine, or on the nodes of a
Slurm job.

srun starts this module on each node, with `<nodes> <processes> <port> <stage> <arguments>`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import torch

from pipeline.study.execution.orphans import die_with_parent
from pipeline.study.execution.stopping import STOPPED
from pipeline.training.loop.distributed import TeamError


def here(stage: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m stages.<stage> <arguments>` in `processes` processes of this machine.

    Raises:
        TeamError: a process failed; says which, how, and what to do.
    """
    node = ["--standalone", f"--nproc-per-node={processes}", "--local-addr=127.0.0.1"]
    name = f"{stage} {' '.join(arguments)}"
    _run([*node, "-m", f"stages.{stage}", *arguments], name, processes)


def on_nodes(stage: str, arguments: Sequence[str], nodes: int, processes: int) -> None:
    """The same in `processes` processes on each of the `nodes` nodes of this Slurm job. The first
    process runs on this node.

    Raises:
        TeamError: a process failed, or there is no srun.
        SystemExit: asked to stop, they did.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise TeamError(f"ESPALIER_NODES is {nodes}, but this is no job of Slurm (no SLURM_JOB_ID)")
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    command = (
        "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={cores}", "--cpu-bind=none", "--kill-on-bad-exit=1",
        sys.executable, "-m", __name__, str(nodes), str(processes), str(_free_port()),
        stage, *arguments,
    )  # fmt: skip
    die_with_parent()
    try:
        srun = subprocess.Popen(command)
    except FileNotFoundError:
        raise TeamError(f"job {job}: no srun on {socket.gethostname()}") from None
    asked = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        srun.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        code = srun.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if code and asked:
        raise SystemExit(STOPPED)
    if code:
        raise TeamError(
            f"{stage} {' '.join(arguments)}: exit code {code} on {nodes} nodes of job {job}. What "
            "it said is above; run again to resume from the last checkpoint"
        )


def _run(arguments: Sequence[str], stage: str, processes: int) -> None:
    """
    Raises:
        SystemExit: asked to stop, the processes did.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    die_with_parent()
    threads = max(1, torch.get_num_threads() // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torchrun sets 1, with a warning
    try:
        torchrun(list(arguments))
    except SignalException:
        raise SystemExit(STOPPED) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise TeamError(
            f"{stage}: process {rank} of {processes} ended with {how}; the others were stopped. "
            "What it said is above; run again to resume from the last checkpoint"
        ) from None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def _agent(nodes: str, processes: str, port: str, stage: str, *arguments: str) -> None:
    """What srun starts on each node."""
    first = os.environ["SLURM_LAUNCH_NODE_IPADDR"]  # where srun runs
    node = [
        f"--nnodes={nodes}", f"--nproc-per-node={processes}",
        f"--node-rank={os.environ['SLURM_NODEID']}",
        f"--master-addr={first}", f"--master-port={port}",
    ]  # fmt: skip
    whole = int(nodes) * int(processes)
    _run([*node, "-m", f"stages.{stage}", *arguments], f"{stage} {' '.join(arguments)}", whole)


if __name__ == "__main__":
    _agent(*sys.argv[1:])
