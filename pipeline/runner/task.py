"""One stage instance of a study, and how its run ended."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

NEVER_BEGAN = -1000  # instead of an exit code: an engine lost the task before it began


class Outcome(StrEnum):
    """How a task ended. `UNCHANGED` and `RESTORED` ran nothing; `STOPPED` can be resumed."""

    UNCHANGED = "unchanged"
    RESTORED = "restored"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Task:
    """A stage with its arguments.

    Attributes:
        name: as DVC has it, e.g. "train@resnet8-hspg-s0".
        module: what `python -m` runs, e.g. "stages.train"; it has a click command `main`.
        arguments: of its command line.
        after: names of the tasks whose results it reads.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    after: frozenset[str] = field(default=frozenset())


class Project(Protocol):
    """What the driver asks of a study: DVC's, or a bundle without DVC."""

    def tasks(self) -> Mapping[str, Task]: ...
    def begin(self, name: str) -> Outcome | None:
        """UNCHANGED or RESTORED where nothing has to run; else None, ready to run."""
        ...

    def done(self, name: str) -> None:
        """Take over the results of a finished task. Raises RuntimeError: they are not usable."""
        ...

    def flush(self) -> None:
        """Write down everything taken over so far."""
        ...


class NotAStageError(ValueError):
    """A command of dvc.yaml is not `python -m stages.<name> ...`."""


def task_of(name: str, command: str, after: frozenset[str]) -> Task:
    """The task behind a command of dvc.yaml.

    Raises:
        NotAStageError: the command starts something else; names it and the way out.
    """
    words = shlex.split(command)
    if words[:2] != ["python", "-m"] or len(words) < 3 or not words[2].startswith("stages."):
        raise NotAStageError(
            f"dvc.yaml: {name}: `espalier run` runs `python -m stages.<name>` only, not "
            f"{command!r}: use `dvc repro`"
        )
    return Task(name, words[2], tuple(words[3:]), after)
