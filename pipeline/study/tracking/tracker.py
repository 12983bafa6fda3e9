"""What a stage reports to: every event to its file first, then to the live mirror in MLflow.

ESPALIER_MLFLOW=off turns the live view off; nothing else changes, since the report stage publishes
whatever is not mirrored.
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

from pipeline.study.tracking.events import EventLog, read_events
from pipeline.study.tracking.mirror import Mirror
from pipeline.study.tracking.provenance import machine_facts, owner
from pipeline.study.tracking.run_views import RunSpec, RunView, with_events
from pipeline.study.tracking.store import Store


@contextlib.contextmanager
def open_tracker(
    spec: RunSpec, events: Path, *, work: Path | None = None, live: bool = True
) -> Iterator[Tracker]:
    """A tracker for one stage instance; leaving the block without `finish` is a finish.

    `live=False` writes the event file only: for stages of seconds, whose runs the publisher logs.
    """
    mirrored = live and os.environ.get("ESPALIER_MLFLOW", "").lower() != "off"
    mirror = Mirror(partial(Store, spec.experiment), spec) if mirrored else None
    tracker = Tracker(spec, events, work, mirror)
    try:
        yield tracker
    except Exception:
        tracker.stop("FAILED")
        raise
    except BaseException:
        tracker.stop("KILLED")
        raise
    if not tracker.ended:
        tracker.finish()


class Tracker:
    """What a stage reports to. Writes every event to its file, then hands it to the mirror.

    Call `begin(offset)` with the offset stored in the checkpoint to resume; without it the first
    metric begins anew. `events` is the finished file (a DVC out, which DVC deletes before a run);
    while the stage runs the file is `work`, kept beside the checkpoints.
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

        Returns whether those before `offset` are lost (the file was deleted, shortened or damaged):
        the file then begins anew, and whoever has the curve tells it again.
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
        """Name a file this run made."""
        self._ensure_begun()
        self._log.append("artifact", path=str(path))

    def offset(self) -> int:
        """Where the event file stands, for the checkpoint."""
        self._ensure_begun()
        return self._log.offset()

    def finish(self, view: RunView | None = None) -> None:
        """End well. `view` is the record's run: with it the mirrored run becomes the run of that
        record; without one (a stage that writes no record) it stands until the publisher has
        logged the record that follows."""
        self._ensure_begun()
        assert self._begun is not None
        self.metrics({"time/session_s": time.monotonic() - self._begun})
        self._log.close()
        if self._work != self._events:
            from pipeline.files import replacing  # pulls in torch; importing this module must not

            with replacing(self._events) as temporary:  # it may be on another file system
                shutil.copyfile(self._work, temporary)
            self._work.unlink()
        if self._mirror is not None:
            complete = with_events(view, read_events(self._events)) if view else None
            self._mirror.close("FINISHED", complete)
            self._mirror = None

    def stop(self, status: str) -> None:
        """End otherwise: FAILED or KILLED. The event file stays for a resumed run."""
        self._log.close()
        if self._mirror is not None:
            self._mirror.close(status, None)
            self._mirror = None

    @property
    def ended(self) -> bool:
        """True after `finish` or `stop`."""
        return self._log.closed

    def _ensure_begun(self) -> None:
        if self._begun is None:
            self.begin()
