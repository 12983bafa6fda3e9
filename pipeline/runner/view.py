"""What a person sees of a run: a live table in a terminal, the same as lines in a log, and a file
that `espalier status` reads from another shell."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import time

from pipeline.files import write_json
from pipeline.runner.local import log_of
from pipeline.runner.task import Outcome, Task

STATUS = Path(".checkpoints/run.json")
REFRESH_S = 1.0
_QUIET = (Outcome.UNCHANGED,)


@dataclass(frozen=True)
class Progress:
    """How far a running task is, from the last line of its log that speaks of an epoch."""

    epoch: int
    epochs: int
    left: float

    @classmethod
    def of(cls, name: str) -> Progress | None:
        """None: the task has said nothing of epochs yet."""
        for line in reversed(_end_of_log(name)):
            words = line.split()
            if words[:1] == ["epoch"] and "/" in words[1] and words[-2:] == ["s", "left"]:
                epoch, _, epochs = words[1].partition("/")
                return cls(int(epoch), int(epochs), float(words[-3]))
        return None

    def __str__(self) -> str:
        return f"epoch {self.epoch}/{self.epochs}, {self.left:.0f} s left"


def _end_of_log(name: str) -> list[str]:
    path = log_of(name)
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        return file.read().decode(errors="replace").splitlines()


class RunView:
    """Tells of one run on stderr and in `STATUS`.

    Args:
        total: number of tasks in the run.
        terminal: redraw one line in place; default: only where stderr is a terminal.
    """

    def __init__(self, total: int, terminal: bool | None = None) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._began: dict[str, float] = {}
        self._nodes: dict[str, str] = {}
        self._outcomes: Counter[Outcome] = Counter()
        self.failures: dict[str, str] = {}
        self._shown = 0.0
        self._first = time()

    def started(self, task: Task) -> None:
        """A task begins; shown by `tick`, said when it ends."""
        self._began[task.name] = time()
        if not self._terminal:
            self._say(f"[{self._done + 1:>{self._wide}}/{self._total}] {task.name} started")

    def ended(self, task: Task, outcome: Outcome, why: str = "") -> None:
        """One line per task that did something."""
        began = self._began.pop(task.name, None)
        self._outcomes[outcome] += 1
        if outcome is Outcome.FAILED:
            self.failures[task.name] = f"{why}; log: {log_of(task.name)}"
        if outcome not in _QUIET:
            took = "" if began is None else f" {time() - began:.1f} s"
            reason = f" ({why})" if why else ""
            number = f"[{self._done:>{self._wide}}/{self._total}]"
            self._say(f"{number} {task.name} {outcome.value}{took}{reason}")
        self._write()

    def resubmitted(self, task: Task) -> None:
        """A task lost its job on a cluster and continues in another."""
        progress = Progress.of(task.name)
        self._say(f"{task.name} lost its job{f' at {progress}' if progress else ''}: goes on")

    def tick(self) -> None:
        """Refresh what is live, at most once a second."""
        if time() - self._shown < REFRESH_S:
            return
        self._shown = time()
        self._write()
        if self._terminal:
            sys.stderr.write("\r\x1b[K" + self._line())
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the terminal clean and the status final; failures stand last, with their logs."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
        if same := self._outcomes[Outcome.UNCHANGED]:
            self._say(f"{same} of {self._total} stages were up to date.")
        for name, why in self.failures.items():
            self._say(f"failed: {name}: {why}")
        self._write(running=False)

    @property
    def _done(self) -> int:
        return sum(self._outcomes.values())

    @property
    def _wide(self) -> int:
        return len(str(self._total))

    def _line(self) -> str:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns if self._terminal else 120
        parts = [f"{self._done}/{self._total}"]
        for name in self._began:
            words = (name, self._where(name), Progress.of(name))
            parts.append(" ".join(str(word) for word in words if word))
        return " | ".join(parts)[: columns - 1]

    def _where(self, name: str) -> str:
        """The node of a cluster, which the log names where a job begins; "" on one machine."""
        for line in reversed(_end_of_log(name)):
            if line.startswith("on ") and ", job " in line:
                self._nodes[name] = line.partition(",")[0]
                break
        return self._nodes.get(name, "")

    def _say(self, line: str) -> None:
        sys.stderr.write(("\r\x1b[K" if self._terminal else "") + line + "\n")
        sys.stderr.flush()

    def _write(self, running: bool = True) -> None:
        STATUS.parent.mkdir(parents=True, exist_ok=True)
        tasks = {n: {"since": since, "where": self._where(n), "progress": str(Progress.of(n) or "")}
                 for n, since in self._began.items()}  # fmt: skip
        counts = {outcome.value: n for outcome, n in sorted(self._outcomes.items())}
        write_json(STATUS, {
            "pid": os.getpid(), "running": running, "since": self._first, "total": self._total,
            "outcomes": counts, "tasks": tasks, "failures": self.failures,
        })  # fmt: skip


def read_status(path: Path = STATUS) -> str:
    """The state of the run in this folder in a few lines.

    Raises:
        FileNotFoundError: no `espalier run` was started here.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no `espalier run` has been started in {Path.cwd()}")
    told = json.loads(path.read_text(encoding="utf-8"))
    alive = told["running"] and Path(f"/proc/{told['pid']}").exists()
    done = sum(told["outcomes"].values())
    state = "running" if alive else "ended" if not told["running"] else "died"
    lines = [f"{state}: {done} of {told['total']} tasks, {time() - told['since']:.0f} s ago begun"]
    lines.append("  " + ", ".join(f"{n} {name}" for name, n in told["outcomes"].items()))
    if alive:
        for name, task in told["tasks"].items():
            at = " ".join(word for word in (name, task["where"]) if word)
            took = time() - task["since"]
            lines.append(f"  {at}: {took:.0f} s, {task['progress'] or 'no epoch yet'}")
    lines += [f"  failed: {name}: {why}" for name, why in told["failures"].items()]
    return "\n".join(lines)
