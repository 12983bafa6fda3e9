"""How often a task may be started again without getting further."""

from __future__ import annotations

from pathlib import Path

from pipeline.runner.task import Task
from pipeline.study import paths

WITHOUT_PROGRESS = 3


class Attempts:
    """A task that is stopped on a cluster starts again as long as its checkpoint advances; after
    `WITHOUT_PROGRESS` attempts in a row without a new checkpoint it has failed."""

    def __init__(self) -> None:
        self._in_vain: dict[str, int] = {}
        self._checkpoint: dict[str, int] = {}

    def one_more(self, task: Task) -> bool:
        """Count an attempt that was stopped; returns whether there may be another."""
        now = newest_checkpoint(task)
        advanced = now > self._checkpoint.get(task.name, 0)
        self._checkpoint[task.name] = now
        self._in_vain[task.name] = 0 if advanced else self._in_vain.get(task.name, 0) + 1
        return self._in_vain[task.name] < WITHOUT_PROGRESS


def newest_checkpoint(task: Task) -> int:
    """When the task last wrote a checkpoint, in ns; 0: never."""
    stage, _, key = task.name.partition("@")
    files = paths.checkpoints(stage, key).rglob("*") if key else ()
    return max((mtime for mtime in map(_mtime, files)), default=0)


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # replaced or removed just now
        return 0
