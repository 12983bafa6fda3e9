"""Several processes on one training, as torchrun would start them, for tests: gloo on the CPU.

`python -m tests.team <module>:<function> <rank> <size> <folder>` calls `function(team, folder)`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.training.loop.distributed import Team

ROOT = Path(__file__).resolve().parent.parent


def together(function: str, folder: Path, size: int = 2, timeout: float = 240.0) -> list[str]:
    """Run `function` ("module:name") in `size` processes; returns what each wrote to stderr.

    Raises:
        AssertionError: a process failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.team", function]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for rank, process in enumerate(started):
        assert process.returncode == 0, f"process {rank}:\n{said[rank][-4000:]}"
    return said


def main() -> None:
    name, rank, size, folder = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder).absolute() / 'rendezvous'}",
        rank=int(rank),
        world_size=int(size),
        timeout=timedelta(seconds=60),
    )
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(Team(int(rank), int(size)), Path(folder))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
