"""Event files: everything a stage reports while it runs, one JSON object per line, in order.

Kinds: params {values}, tags {values}, metrics {values, step, epoch}, artifact {path}, note {text};
each has the wall time. The file is append-only and flushed after each line, so a killed process
leaves at most one incomplete line. No stage depends on the file, so it may hold times and hosts.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["params", "tags", "metrics", "artifact", "note"]
KINDS = frozenset(get_args(Kind))


@dataclass(frozen=True)
class Event:
    """One line. `time` is in seconds since 1970; `data` depends on the kind."""

    kind: Kind
    time: float
    data: Mapping[str, Any]


class EventLog:
    """An event file open for appending. Removes an incomplete last line of an earlier process."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._cut(_whole_lines(self.path))

    @property
    def closed(self) -> bool:
        return self._file.closed

    def append(self, kind: Kind, **data: Any) -> Event:
        """Write one event and flush it.

        Raises:
            ValueError: a metric is not finite.
            OSError: it could not be written, e.g. because the disk is full; names the file.
        """
        if kind == "metrics":
            _check_finite(data["values"], self.path)
        event = Event(kind, time.time(), data)
        line = json.dumps({"kind": kind, "time": event.time, **data}, allow_nan=False)
        with self._naming():
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        return event

    def offset(self) -> int:
        """Number of bytes written and synced so far; stored in checkpoints."""
        with self._naming():
            os.fsync(self._file.fileno())
        return self._file.tell()

    def truncate(self, offset: int) -> bool:
        """Drop what was written after `offset`, since a resumed training writes it again. If the
        events before it are damaged, drop them too and return False."""
        before = self.path.read_bytes()[:offset]
        whole = len(before) == offset and _readable(before)
        self._cut(offset if whole else 0)
        return whole

    def close(self) -> None:
        """Close the file. May be called twice. What a full disk did not take is lost."""
        with contextlib.suppress(OSError):
            self._file.close()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno, f"{self.path}: not written ({error.strerror}); run again to go on"
            ) from error

    def _cut(self, offset: int) -> None:
        self._file.truncate(offset)
        self._file.seek(0, os.SEEK_END)


def read_events(path: Path) -> list[Event]:
    """All events of a file, in order. An incomplete last line (no newline) is ignored.

    Raises:
        ValueError: another line is damaged; names file and line.
    """
    return _events(Path(path).read_bytes(), path)


def _events(raw: bytes, path: Path) -> list[Event]:
    lines = raw[: raw.rfind(b"\n") + 1].splitlines()
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _readable(raw: bytes) -> bool:
    """Whether `raw` consists of complete lines, each a valid event."""
    try:
        _events(raw, Path())
    except ValueError:
        return False
    return not raw or raw.endswith(b"\n")


def _parse(line: bytes, where: str) -> Event:
    try:
        data = json.loads(line)
        kind, at = data.pop("kind"), float(data.pop("time"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{where}: damaged event ({error}). Delete the file: it is only a view, "
            "the record beside it holds the results"
        ) from error
    if kind not in KINDS:
        raise ValueError(f"{where}: unknown kind {kind!r} (known: {', '.join(sorted(KINDS))})")
    return Event(kind, at, data)


def _whole_lines(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _check_finite(values: Mapping[str, float], path: Path) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{path}: metric {name!r} is {value}, not a finite number")
