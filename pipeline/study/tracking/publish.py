"""Publish every record of a study as one complete MLflow run, wherever it was computed.

A run is found by the hash of its record (tag `record_sha`), never by name or age. So a stage that
DVC restored, a clone without its database and another server all end with the same runs. The
tables, which read only MLflow (read_back.py), are then byte-identical.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.study.tracking.database import sqlite_file, tracking_uri
from pipeline.study.tracking.provenance import is_dead, owner
from pipeline.study.tracking.run_views import RunView
from pipeline.study.tracking.store import SEALED, Store, open_store
from pipeline.study.tracking.study_runs import Study

_FULL = {errno.ENOSPC, errno.EDQUOT}
Counts = Mapping[tuple[str, str], int] | None


def publish(study: Study) -> dict[str, str]:
    """Make MLflow hold one complete run per record. Returns run ids by record hash.

    Complete runs are not changed. Runs of killed processes are marked KILLED, or removed if a
    complete run replaces them.

    Raises:
        RuntimeError: mlflow is not installed, or the server does not answer; says what to do.
    """
    try:
        store = open_store(study.name)
        with store.lock("publish"):
            return _publish(store, study)
    except (ValueError, FileNotFoundError):
        raise  # a damaged record or event file; the message names it
    except Exception as error:
        raise RuntimeError(_no_answer(error)) from error


def _publish(store: Store, study: Study) -> dict[str, str]:
    found, counts = store.sealed(), store.metric_counts()
    ids: dict[str, str] = {}
    for view in (v for group in study.views.values() for v in group):
        run = found.get(view.sha)
        if run is not None and not _holds(store, run, view, counts):
            store.delete(run.info.run_id)
            run = None
        nested = _nested(view, ids)
        if run is None:
            ids[view.sha] = _log(store, view, nested)
            continue
        ids[view.sha] = str(run.info.run_id)
        if not store.has_document(run):
            store.attach_document(run.info.run_id, view.document)
        told = {"row": view.tags["row"], **nested}
        if any(run.data.tags.get(k) != v for k, v in told.items()):
            store.describe(run.info.run_id, {}, told)
    if _drop_doubles(store, ids):
        return _publish(store, study)
    _reconcile(store, study)
    rows = Counter((v.stage, v.tags["row"]) for group in study.views.values() for v in group)
    store.show_views({row for _, row in rows}, max(rows.values(), default=1) > 1)
    return ids


def _drop_doubles(store: Store, ids: Mapping[str, str]) -> bool:
    """Delete runs of the same record, which come from `dvc repro -f`, two machines or two reports
    at once. The oldest stays, whoever deletes: two reports that kept their own would delete both.

    Returns whether a run of `ids` was among them.
    """
    winners = {sha: run.info.run_id for sha, run in store.sealed().items()}
    for run in store.runs(SEALED):
        sha = run.data.tags["record_sha"]
        if sha in ids and run.info.run_id != winners.get(sha, run.info.run_id):
            store.delete(run.info.run_id)
    return any(winners.get(sha, run_id) != run_id for sha, run_id in ids.items())


def _nested(view: RunView, ids: Mapping[str, str]) -> dict[str, str]:
    """Tags that nest a run under its parent. They change when a sweep gets another point."""
    if view.parent is None:
        return {}
    return {"mlflow.parentRunId": ids[view.parent], "parent_sha": view.parent}


def _log(store: Store, view: RunView, nested: Mapping[str, str]) -> str:
    points = (*view.points, *view.extra)
    times = [p.time for p in points if p.time is not None]
    first, last = (min(times), max(times)) if times else (None, None)
    tags = {"stage": view.stage, "key": view.key, "owner": owner()}
    tags["source"] = "published" if times else "republished"
    run_id = store.create(view.name, {**view.tags, **tags, **nested}, first)
    store.describe(run_id, view.params, {})
    store.log(run_id, points)
    store.attach(run_id, view)
    store.seal(run_id, view, last)
    return run_id


def _holds(store: Store, run: Any, view: RunView, counts: Counts) -> bool:
    """Whether the run agrees with the record: it was not edited and has every point."""
    metrics, params = run.data.metrics, run.data.params
    return (
        all(metrics.get(k) == v for k, v in view.summary().items())
        and all(params.get(k) == v for k, v in view.params.items())
        and _has_points(store, run.info.run_id, view, counts)
    )


def _has_points(store: Store, run_id: str, view: RunView, counts: Counts) -> bool:
    """Whether the run has every step of every metric. In a local file, one query counts them."""
    asked: dict[str, dict[int, float]] = {}
    for point in view.points:
        asked.setdefault(point.name, {})[point.step] = point.value
    if counts is not None and any(counts.get((run_id, k)) != len(v) for k, v in asked.items()):
        return False
    curves = {name: points for name, points in asked.items() if len(points) > 1}
    return all(
        {p.step: p.value for p in store.history(run_id, name)} == points
        for name, points in curves.items()
    )


def _reconcile(store: Store, study: Study) -> None:
    """Runs without a record whose process has ended: delete superseded ones, mark others KILLED."""
    done = {tuple(name.split("/", 1)) for name in study.views}
    done |= {(stage, key) for kind, key in done if kind == "evaluate" for stage in _BEFORE}
    for run in store.runs("tags.owner != ''"):
        tags, running = run.data.tags, run.info.status == "RUNNING"
        if "record_sha" in tags or (running and not is_dead(tags["owner"])):
            continue
        if running or run.info.status == "FINISHED":
            if (tags.get("stage"), tags.get("key")) in done:
                store.delete(run.info.run_id)
            elif running:
                store.end(run.info.run_id, "KILLED")


_BEFORE = ("prune", "finetune")  # stages without a record; the evaluate record covers them


@contextmanager
def naming_full_disk_of_store() -> Iterator[None]:
    """
    Raises:
        RuntimeError: the disk of a local store is full; names its file and the free space.
    """
    try:
        yield
    except Exception as error:
        if (told := _full_disk(error)) is None:
            raise
        raise RuntimeError(told) from error


def _full_disk(error: Exception) -> str | None:
    """The line for a store whose disk is full; None for another error."""
    told = str(error)  # SQLite's words may be in any line
    if "disk is full" not in told and getattr(error, "errno", None) not in _FULL:
        return None
    database = sqlite_file(tracking_uri())
    if database is not None and not isinstance(error, OSError):
        free = shutil.disk_usage(database.parent).free / 1e6
        told = f"{database}: the disk is full ({free:.1f} MB free)"
    return f"MLflow's store: {told}. Records are complete; free some space and run again"


def _no_answer(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "publishing needs mlflow: `pip install 'mlflow>=3.17,<4'` (records are complete)"
    if (told := _full_disk(error)) is not None:
        return told
    return (
        f"MLflow does not answer ({type(error).__name__}: {error}). Records are complete; start "
        "the server or unset MLFLOW_TRACKING_URI, then run `dvc repro` again"
    )
