"""One process at a time: a lock file that holds the pid of its owner, and is free when it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import naming_full_disk

FOLDER = Path(".checkpoints")


class BusyError(RuntimeError):
    """Another process is doing the same in this folder."""


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold the lock `name` of the study in the working folder.

    Raises:
        BusyError: another process holds it; names the process.
    """
    lock = FOLDER / f"{name.replace(' ', '-')}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = f" (process {pid})" if (pid := file.read().strip()) else ""
            raise BusyError(f"{name} is running already in {Path.cwd()}{owner}") from error
        with naming_full_disk(lock):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")  # so that a user can stop it
            file.flush()
        yield
