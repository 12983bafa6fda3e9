"""What every stage process needs: a device, one writer at a time, no orphans, a log on stderr."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.files import file_sha256
from pipeline.study import paths

PR_SET_PDEATHSIG = 1
log = logging.getLogger("espalier")


@dataclass(frozen=True)
class Workplace:
    """Where a stage instance works: its device, and its folder outside every DVC output."""

    device: torch.device
    folder: Path


class BusyError(RuntimeError):
    """Another process is running the same stage instance."""


@contextmanager
def stage_process(stage: str, key: str) -> Iterator[Workplace]:
    """Around the work of a stage instance: lock it, die with DVC, log to stderr.

    Raises:
        BusyError: the same instance runs already in this folder.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    _die_with_parent()
    lock = Path(".checkpoints") / f"{stage}@{key}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"{stage}@{key} is running already in {Path.cwd()}") from error
        if threads := os.environ.get("ESPALIER_THREADS"):
            torch.set_num_threads(int(threads))
        yield Workplace(choose_device(), paths.checkpoints(stage, key))


def code_digest(root: Path, *files: str) -> dict[str, str]:
    """SHA-256 of each code file, by name: code that changed is not what wrote a checkpoint."""
    return {name: file_sha256(root / name) for name in files}


def loop_code(root: Path) -> dict[str, str]:
    """`code_digest` of everything a training runs through."""
    rooms = ("pipeline/data", "pipeline/units", "pipeline/training")
    found = sorted(p for room in rooms for p in (root / room).rglob("*.py"))
    return code_digest(root, *(str(p.relative_to(root)) for p in found))


def choose_device() -> torch.device:
    """ESPALIER_DEVICE if set, else the first GPU, else the CPU."""
    wanted = os.environ.get("ESPALIER_DEVICE", "auto")
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _die_with_parent() -> None:
    """Killing `dvc repro` must not leave a training behind that a second one would write over."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
