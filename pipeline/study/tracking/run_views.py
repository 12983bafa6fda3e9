"""The content of an MLflow run as plain data: a name, flat params, metric points, tags."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.study.tracking.events import Event


@dataclass(frozen=True)
class Point:
    """One value of one metric. `time` is in seconds; None if unknown (records have no times)."""

    name: str
    value: float
    step: int = 0
    time: float | None = None


@dataclass(frozen=True)
class RunView:
    """The whole content of one MLflow run. `document` is the record's canonical JSON, `data` the
    name and hash of the data set, `parent` the hash of the record whose run it is nested under,
    `extra` the metric points that only the event file has."""

    stage: str
    key: str
    name: str
    sha: str
    params: Mapping[str, str]
    points: tuple[Point, ...]
    tags: Mapping[str, str]
    document: str
    data: tuple[str, str]
    parent: str | None = None
    extra: tuple[Point, ...] = ()

    def summary(self) -> dict[str, float]:
        """Last value of every metric of the record, as in MLflow's table of runs."""
        last: dict[str, Point] = {}
        for point in self.points:
            if point.name not in last or point.step >= last[point.name].step:
                last[point.name] = point
        return {name: p.value for name, p in last.items()}


@dataclass(frozen=True)
class RunSpec:
    """A run before its result is known; a stage passes it to the tracker at its start.

    Attributes:
        experiment: name of the MLflow experiment, which is the name of the study.
    """

    stage: str
    key: str
    experiment: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def with_events(view: RunView, events: Sequence[Event]) -> RunView:
    """Add what only the event file has: wall times, host and versions, latencies.

    If both have a metric, the record's values are used.
    """
    told = points_of(events)
    times = {(p.name, p.step): p.time for p in told}
    points = tuple(replace(p, time=times.get((p.name, p.step))) for p in view.points)
    known = {p.name for p in points}
    tags = {k: v for e in events if e.kind == "tags" for k, v in e.data["values"].items()}
    extra = tuple(p for p in told if p.name not in known)
    return replace(view, points=points, extra=extra, tags={**tags, **view.tags})


def points_of(events: Iterable[Event]) -> list[Point]:
    """Metric events as MLflow points. Numbers of an epoch are in the group curve/."""
    found = []
    for event in events:
        if event.kind != "metrics":
            continue
        epoch, step = event.data.get("epoch"), event.data.get("step")
        at = int(step if step is not None else epoch if epoch is not None else 0)
        values = dict(event.data["values"])
        if epoch is not None:
            values = {f"curve/{k}": v for k, v in (values | {"epoch": epoch}).items()}
        found += [Point(name, float(v), at, event.time) for name, v in values.items()]
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as dotted names and strings: {"recipe": {"epochs": 5}} -> recipe.epochs=5."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{name}.")
        else:
            out[name] = value if isinstance(value, str) else json.dumps(value)
    return out


def parts(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """`rows` in pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
