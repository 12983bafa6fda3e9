"""Several processes for one stage instance: start them with torchrun, and join their group.

The number of processes is a property of the machine. It changes the order of floating-point sums
but no DVC parameter, so another number retrains nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch

from pipeline.study.execution import torchrun
from pipeline.training.loop.distributed import ALONE, Team

PATIENCE_S = 1800.0  # how long a process waits for the others, e.g. while the first validates
Processes = int | Literal["auto"]


def launched(stage: str, arguments: Sequence[str], processes: Processes) -> bool:
    """Run `python -m stages.<stage> <arguments>` in `processes` processes and wait for them; with
    ESPALIER_NODES set, in as many on each of that many nodes of this Slurm job.

    Does nothing and returns False if one process is enough, or if this process is already one of
    several (started here or with torchrun).

    Raises:
        TeamError: a process failed; says which, how, and what to do.
        SystemExit: asked to stop, the processes did.
    """
    count, nodes = wanted(processes), _number("ESPALIER_NODES", "1")
    if count * nodes == 1 or "WORLD_SIZE" in os.environ:
        return False
    if nodes > 1:
        torchrun.on_nodes(stage, arguments, nodes, count)
    else:
        torchrun.here(stage, arguments, count)
    return True


def wanted(processes: Processes) -> int:
    """ESPALIER_PROCESSES if set, else `processes`. "auto": one per GPU, or one without a GPU."""
    asked = os.environ.get("ESPALIER_PROCESSES", str(processes))
    if asked == "auto":
        return max(1, torch.cuda.device_count())
    return _number("ESPALIER_PROCESSES", str(processes), ", or auto")


def _number(variable: str, default: str, more: str = "") -> int:
    asked = os.environ.get(variable, default)
    if not asked.isdigit() or int(asked) < 1:
        raise ValueError(f"{variable} is {asked!r}: give a number from 1 on{more}")
    return int(asked)


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Team, torch.device]]:
    """This process's team and device. The process group exists inside the context.

    The backend is NCCL if every process of this machine has its own GPU, else gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device
        return
    import torch.distributed as dist

    local, backend = int(os.environ["LOCAL_RANK"]), "gloo"
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        device = torch.device("cuda", local % gpus)
        torch.cuda.set_device(device)
        backend = "nccl" if int(os.environ["LOCAL_WORLD_SIZE"]) <= gpus else "gloo"
    patience = float(os.environ.get("ESPALIER_PATIENCE", PATIENCE_S))
    dist.init_process_group(backend, timeout=timedelta(seconds=patience))
    try:
        yield Team(dist.get_rank(), size), device
    finally:
        dist.destroy_process_group()
