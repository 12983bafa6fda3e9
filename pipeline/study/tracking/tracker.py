"""The tracker of a stage: writes every event to a file, then to the live mirror in MLflow.

ESPALIER_MLFLOW=off turns the live view off. Nothing else changes, since the report stage publishes
everything that is not mirrored.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pipeline.files import replacing
from pipeline.study.tracking.events import EventLog, read_events
from pipeline.study.tracking.mirror import Mirror
from pipeline.study.tracking.provenance import machine_facts, owner
from pipeline.study.tracking.run_views import RunSpec, RunView, with_events
from pipeline.study.tracking.store import Store


def live_view() -> bool:
    """Whether a running stage also writes to MLflow."""
    return os.environ.get("ESPALIER_MLFLOW", "").lower() != "off"


@contextlib.contextmanager
def open_tracker(
    spec: RunSpec, events: Path, *, work: Path | None = None, live: bool = True
) -> Iterator[Tracker]:
    """A tracker for one stage instance. Leaving the block calls `finish` if it was not called; an
    exception stops the run as FAILED or KILLED.

    `live=False` writes the event file only, for short stages, whose runs the publisher logs.
    """
    mirror = Mirror(partial(Store, spec.experiment), spec) if live and live_view() else None
    tracker = Tracker(spec, events, work, mirror)
    try:
        yield tracker
        if not tracker.ended:
            tracker.finish()
    except Exception:
        tracker.stop("FAILED")
        raise
    except BaseException:
        tracker.stop("KILLED")
        raise


class Tracker:
    """Writes every event of a stage to its file, then passes it to the mirror.

    To resume, call `begin(offset)` with the offset stored in the checkpoint; otherwise the first
    metric starts a new file. `events` is the finished file, a DVC output, which DVC deletes before
    a run. While the stage runs, the file is `work`, beside the checkpoints.
    """

    def __init__(
        self, spec: RunSpec, events: Path, work: Path | None = None, mirror: Mirror | None = None
    ) -> None:
        self.spec = spec
        self._events, self._work = Path(events), Path(work or events)
        self._log = EventLog(self._work)
        self._mirror = mirror
        self._begun: float | None = None

    def begin(self, offset: int = 0) -> bool:
        """Start, or resume after the events before `offset`; later ones are dropped.

        Returns True if the events before `offset` are lost (the file was deleted, shortened or
        damaged). The file then starts empty, and the caller must send the curve again.
        """
        lost = not self._log.truncate(offset)
        offset = 0 if lost else offset
        self._begun = time.monotonic()
        tags = {**self.spec.tags, **machine_facts()}
        if offset == 0:
            self._log.append("params", values=dict(self.spec.params))
            tags["log_id"] = uuid.uuid4().hex
        else:
            sessions = [e for e in read_events(self._work) if e.kind == "tags"]
            tags["resumed"] = str(len(sessions))
            tags["log_id"] = sessions[0].data["values"]["log_id"]
        self._log.append("tags", values=tags)
        if self._mirror is not None:
            self._mirror.begin(tags | {"owner": owner(), "source": "live"}, read_events(self._work))
        return lost

    def metrics(
        self, values: Mapping[str, float], *, epoch: int | None = None, step: int | None = None
    ) -> None:
        """Numbers of an epoch, or (without `epoch`) of the run as a whole.

        Raises:
            ValueError: a value is not finite.
        """
        self._ensure_begun()
        plain = {k: float(v) for k, v in values.items()}
        event = self._log.append("metrics", values=plain, step=step, epoch=epoch)
        if self._mirror is not None:
            self._mirror.put([event])

    def note(self, text: str) -> None:
        """A line for a reader of the event file."""
        self._ensure_begun()
        self._log.append("note", text=text)

    def artifact(self, path: Path) -> None:
        """Record the name of a file that this run made."""
        self._ensure_begun()
        self._log.append("artifact", path=str(path))

    def offset(self) -> int:
        """Position in the event file, for the checkpoint."""
        self._ensure_begun()
        return self._log.offset()

    def finish(self, view: RunView | None = None) -> None:
        """End normally. With `view`, the view of a record, the mirrored run becomes that record's
        run. Without it (a stage that writes no record) the run stays until the publisher has logged
        the later record."""
        self._ensure_begun()
        assert self._begun is not None
        self.metrics({"time/session_s": time.monotonic() - self._begun})
        self._log.close()
        if self._work != self._events:
            with replacing(self._events) as temporary:  # it may be on another file system
                shutil.copyfile(self._work, temporary)
            self._work.unlink()
        if self._mirror is not None:
            complete = with_events(view, read_events(self._events)) if view else None
            self._mirror.close("FINISHED", complete)
            self._mirror = None

    def stop(self, status: str) -> None:
        """End with FAILED or KILLED. The event file stays for a resumed run."""
        self._log.close()
        if self._mirror is not None:
            self._mirror.close(status, None)
            self._mirror = None

    @property
    def ended(self) -> bool:
        """Whether `finish` or `stop` was called."""
        return self._log.closed

    def _ensure_begun(self) -> None:
        if self._begun is None:
            self.begin()
