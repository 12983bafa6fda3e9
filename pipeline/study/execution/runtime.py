"""Set-up of every stage process: device, lock, threads, end with DVC, log on stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.study import paths
from pipeline.study.execution.busy import only_one
from pipeline.study.execution.code import code_sha256
from pipeline.study.execution.launch import joined
from pipeline.study.execution.orphans import die_with_parent
from pipeline.training.loop.distributed import ALONE, Team

log = logging.getLogger("espalier")
LOOP_CODE = (
    "pipeline/data",
    "pipeline/units",
    "pipeline/selection",
    "pipeline/training",
    "models/_blocks",
)


@dataclass(frozen=True)
class Workplace:
    """Where a stage instance runs: its device, its folder outside every DVC output, and the team of
    processes that share it."""

    device: torch.device
    folder: Path
    team: Team = ALONE


@contextmanager
def stage_process(stage: str, key: str, threads: int | None = None) -> Iterator[Workplace]:
    """Context for the work of a stage instance: lock it, end with DVC, log to stderr, and join the
    other processes that were launched for it. The first process holds the lock and logs.

    Args:
        threads: CPU threads of this process; None = torch's default. ESPALIER_THREADS overrides.

    Raises:
        BusyError: the same instance is already running in this folder.
    """
    die_with_parent()
    with joined(choose_device()) as (team, device):
        level = os.environ.get("ESPALIER_LOG", "INFO") if team.first else logging.WARNING
        logging.basicConfig(stream=sys.stderr, level=level, format="%(message)s")
        if wanted := os.environ.get("ESPALIER_THREADS", threads):
            torch.set_num_threads(int(wanted))
        with only_one(f"{stage}@{key}") if team.first else nullcontext():
            yield Workplace(device, paths.checkpoints(stage, key), team)


def code_digest(root: Path, *places: str) -> dict[str, str]:
    """Digest by name of each code file in the files and folders `places` below `root`. A checkpoint
    belongs to the code that wrote it. Comments and docstrings do not count."""
    files = [f for place in places for f in _code(root / place)]
    return {str(f.relative_to(root)): code_sha256(f) for f in files}


def loop_code(root: Path) -> dict[str, str]:
    """`code_digest` of the code that every training runs."""
    return code_digest(root, *LOOP_CODE)


def method_code(root: Path, method: str) -> dict[str, str]:
    """`code_digest` of one method and of the code its family shares."""
    return code_digest(root, "methods/_oto", f"methods/{method}")


def _code(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def choose_device() -> torch.device:
    """ESPALIER_DEVICE if set, else the first GPU, else the CPU."""
    wanted = os.environ.get("ESPALIER_DEVICE", "auto")
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
