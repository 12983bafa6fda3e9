"""The live mirror: copies events to MLflow from a background thread, so that training never waits.

If the server is down, slow or absent, there is one warning and no live view, but nothing else
changes: the run stays unfinished, and the publisher logs a complete one from the event file.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.study.tracking.events import Event
from pipeline.study.tracking.run_views import Point, RunSpec, RunView, points_of

LAST_WAIT_S = 20.0  # how long the end of a stage waits for the last metrics to arrive
_log = logging.getLogger("espalier.tracking")


class RunStore(Protocol):
    """The part of `store.Store` that the mirror needs."""

    def runs(self, where: str) -> list[Any]: ...
    def create(self, name: str, tags: Mapping[str, str], started: float | None = None) -> str: ...
    def log(self, run_id: str, points: Iterable[Point]) -> None: ...
    def describe(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None: ...
    def attach(self, run_id: str, view: RunView) -> None: ...
    def seal(self, run_id: str, view: RunView, ended: float | None = None) -> None: ...
    def end(self, run_id: str, status: str, ended: float | None = None) -> None: ...
    def reopen(self, run_id: str) -> None: ...
    def history(self, run_id: str, metric: str) -> list[Point]: ...


@dataclass(frozen=True)
class _End:
    status: str
    view: RunView | None


class Mirror:
    """One MLflow run that follows one event file.

    `begin` starts the thread; `put` never blocks; `close` waits at most LAST_WAIT_S. A resumed
    training finds its run by the tag `log_id`, which is in the event file, and logs only missing
    points. So there is one run without duplicate steps.
    """

    def __init__(self, connect: Callable[[], RunStore], spec: RunSpec) -> None:
        self._connect, self._spec = connect, spec
        self._queue: queue.SimpleQueue[list[Point] | _End] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)
        self._failed = threading.Event()
        self._tags: Mapping[str, str] = {}
        self._sent: set[tuple[str, int]] = set()

    @property
    def failed(self) -> bool:
        """Whether mirroring has failed and is off."""
        return self._failed.is_set()

    def begin(self, tags: Mapping[str, str], events: Sequence[Event]) -> None:
        """Start, with the run's tags and the events that are already in the file."""
        self._tags = tags
        self.put(events)
        self._thread.start()

    def put(self, events: Sequence[Event]) -> None:
        """Queue events; dropped once mirroring is off."""
        points = points_of(events)
        if points and not self.failed:
            self._queue.put(points)

    def close(self, status: str, view: RunView | None) -> None:
        """Send the remaining events and end the run. With `view` it becomes that record's run."""
        if not self._thread.is_alive():
            return
        self._queue.put(_End(status, view))
        self._thread.join(LAST_WAIT_S)
        if self._thread.is_alive():
            self._give_up(f"no answer within {LAST_WAIT_S:g} s")

    def _run(self) -> None:
        try:
            store = self._connect()
            run_id = self._find(store)
            while not isinstance(item := self._queue.get(), _End):
                self._send(store, run_id, item)
            self._end(store, run_id, item)
        except Exception as error:  # the training continues whatever happens to tracking
            self._give_up(f"{type(error).__name__}: {error}")

    def _find(self, store: RunStore) -> str:
        found = store.runs(f"tags.log_id = '{self._tags['log_id']}'")
        if found:
            run = found[0]
            run_id = str(run.info.run_id)
            for name in run.data.metrics:
                self._sent |= {(p.name, p.step) for p in store.history(run_id, name)}
            store.reopen(run_id)
        else:
            run_id = store.create(f"{self._spec.stage}/{self._spec.key}", self._tags)
        tags = {**self._tags, "stage": self._spec.stage, "key": self._spec.key}
        store.describe(run_id, self._spec.params, tags)
        return run_id

    def _send(self, store: RunStore, run_id: str, points: Iterable[Point]) -> None:
        fresh = [p for p in points if (p.name, p.step) not in self._sent]
        if fresh:
            store.log(run_id, fresh)
            self._sent |= {(p.name, p.step) for p in fresh}

    def _end(self, store: RunStore, run_id: str, end: _End) -> None:
        if end.view is None:
            store.end(run_id, end.status)
            return
        self._send(store, run_id, (*end.view.points, *end.view.extra))
        store.describe(run_id, end.view.params, end.view.tags)
        store.attach(run_id, end.view)
        store.seal(run_id, end.view)

    def _give_up(self, why: str) -> None:
        if not self.failed:
            self._failed.set()
            first_line = why.splitlines()[0][:200]
            _log.warning(
                "MLflow does not answer (%s): live view off for %s/%s; training goes on and the "
                "report stage publishes this run later", first_line, self._spec.stage,
                self._spec.key,
            )  # fmt: skip
