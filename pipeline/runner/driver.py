"""Runs the stale tasks of a study: dependencies first, the longest first, failures contained."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from pipeline.runner.attempts import WITHOUT_PROGRESS, Attempts
from pipeline.runner.task import NEVER_BEGAN, Outcome, Project, Task
from pipeline.study.execution.stopping import STOPPED

FLUSH_EVERY_S = 15.0
FLUSH_SHARE = 0.05  # of the time of a run, at most: dvc.lock is written as a whole
_ENDED_BY_TERM = -15


class Engine(Protocol):
    """Where tasks run. With `resubmits`, a task that ends by a signal has lost its machine, or its
    time there is up, and is started again."""

    workers: int
    resubmits: bool

    def submit(self, task: Task) -> Future[int]: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


class View(Protocol):
    """Who is told what happens."""

    def started(self, task: Task) -> None: ...
    def ended(self, task: Task, outcome: Outcome, why: str = "") -> None: ...
    def resubmitted(self, task: Task) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Driver:
    """One run over the tasks of a project.

    Attributes:
        cost: estimated work of a task, any unit; of two ready tasks the one on the costlier path to
            the end goes first.
        deadline: `time.monotonic` at which running tasks are asked to stop; None: no end.
        grace: seconds that a task has to reach its next checkpoint before it is killed.
    """

    project: Project
    engine: Engine
    view: View
    cost: Callable[[Task], float]
    deadline: float | None = None
    grace: float = 120.0
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def run(self, tasks: Mapping[str, Task]) -> dict[str, Outcome]:
        """Run what is stale among `tasks`; returns how each of them ended.

        A first Ctrl-C or the deadline asks the running tasks to stop at a checkpoint and starts no
        more; a second Ctrl-C ends them. Results of finished tasks are always taken over.
        """
        self._tasks = tasks
        self._urgency = urgencies(tasks, self.cost)
        self._missing = {n: set(t.after) & set(tasks) for n, t in tasks.items()}
        self._ready = [(-self._urgency[n], n) for n, m in self._missing.items() if not m]
        heapq.heapify(self._ready)
        self._running: dict[Future[int], Task] = {}
        self._attempts = Attempts()
        self._stopping: float | None = None
        flushed, pause = monotonic(), FLUSH_EVERY_S
        try:
            while self._ready or self._running:
                try:
                    self._start()
                    self._collect()
                    self._watch_clock()
                    self.view.tick()
                    if (began := monotonic()) - flushed > pause:
                        self.project.flush()
                        flushed = monotonic()
                        pause = max(pause, (flushed - began) / FLUSH_SHARE)
                except KeyboardInterrupt:
                    self._interrupt()
        finally:
            self.engine.kill()
            self.project.flush()
        for name in tasks:
            self.outcomes.setdefault(name, Outcome.STOPPED)
        return self.outcomes

    def _start(self) -> None:
        while self._ready and len(self._running) < self.engine.workers and not self._stopping:
            task = self._tasks[heapq.heappop(self._ready)[1]]
            try:
                outcome = self.project.begin(task.name)
            except RuntimeError as error:
                self._end(task, Outcome.FAILED, str(error))
                continue
            if outcome is not None:
                self._end(task, outcome)
                continue
            self.view.started(task)
            self._running[self.engine.submit(task)] = task
        if self._stopping:
            self._ready = []

    def _collect(self) -> None:
        if not self._running:
            return
        for future in wait(self._running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            task = self._running.pop(future)
            code = future.result()
            if code == 0:
                self._take_over(task)
            elif self.engine.resubmits and not self._stopping and (code < 0 or code == STOPPED):
                self._again(task, code)
            elif code in (STOPPED, _ENDED_BY_TERM) or (code < 0 and self._stopping):
                self._end(task, Outcome.STOPPED)
            else:
                self._end(task, Outcome.FAILED, f"exit code {code}")

    def _again(self, task: Task, code: int) -> None:
        if code != NEVER_BEGAN and not self._attempts.one_more(task):
            why = f"ended {WITHOUT_PROGRESS} times without a new checkpoint, at last by {code}"
            self._end(task, Outcome.FAILED, why)
            return
        self.view.resubmitted(task)
        self._running[self.engine.submit(task)] = task

    def _take_over(self, task: Task) -> None:
        try:
            self.project.done(task.name)
        except RuntimeError as error:
            self._end(task, Outcome.FAILED, str(error))
        else:
            self._end(task, Outcome.DONE)

    def _end(self, task: Task, outcome: Outcome, why: str = "") -> None:
        self.outcomes[task.name] = outcome
        if not self._running and not self._ready:  # a bottleneck: estimates may be better behind it
            self._urgency = urgencies(self._tasks, self.cost)
        self.view.ended(task, outcome, why)
        for name, missing in self._missing.items():
            if task.name not in missing:
                continue
            missing.discard(task.name)
            if outcome in (Outcome.FAILED, Outcome.SKIPPED, Outcome.STOPPED):
                if name not in self.outcomes:
                    left = Outcome.STOPPED if outcome is Outcome.STOPPED else Outcome.SKIPPED
                    self._end(self._tasks[name], left, f"needs {task.name}")
            elif not missing and name not in self.outcomes:
                heapq.heappush(self._ready, (-self._urgency[name], name))

    def _watch_clock(self) -> None:
        now = monotonic()
        if self.deadline is not None and now > self.deadline and self._stopping is None:
            self._ask_to_stop()
        if self._stopping is not None and now > self._stopping + self.grace:
            self.engine.kill()

    def _ask_to_stop(self) -> None:
        self._stopping = monotonic()
        self.engine.stop()

    def _interrupt(self) -> None:
        if self._stopping is None:
            self._ask_to_stop()
        else:
            self.engine.kill()


def urgencies(tasks: Mapping[str, Task], cost: Callable[[Task], float]) -> dict[str, float]:
    """Cost of the costliest path from each task to the end of the study."""
    readers: dict[str, list[str]] = {name: [] for name in tasks}
    for name, task in tasks.items():
        for before in task.after & set(tasks):
            readers[before].append(name)
    found: dict[str, float] = {}

    def of(name: str) -> float:
        if name not in found:
            found[name] = cost(tasks[name]) + max((of(r) for r in readers[name]), default=0.0)
        return found[name]

    for name in tasks:
        of(name)
    return found
