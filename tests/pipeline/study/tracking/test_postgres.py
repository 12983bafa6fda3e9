"""PostgreSQL as MLflow's store: a real server on loopback, several writers at once."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.run_views import RunSpec
from pipeline.study.tracking.store import Store, _make_tables
from pipeline.study.tracking.tracker import open_tracker
from tests.cluster.slurm import free_ports, until
from tests.reports.samples import sqlite_uri, write_study

WRITERS, EPOCHS = 4, 60
BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "postgres").exists(), reason="no PostgreSQL of Debian"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process of another user"),
    pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="no psycopg"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    """An empty database of a server of our own; it refuses to run as root."""
    folder = Path(tempfile.mkdtemp(prefix="postgres"))
    (port,) = free_ports(1)
    shutil.chown(folder, "postgres")
    settings = ("-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-F")
    as_user = {"user": "postgres", "group": "postgres", "cwd": folder, "env": {"LC_ALL": "C"}}
    try:
        subprocess.run(
            [
                BIN / "initdb", "-D", folder / "data", "-E", "UTF8", "-A", "trust", "--no-sync",
                "-U", "espalier",
            ],
            check=True, capture_output=True, **as_user,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [BIN / "postgres", "-D", folder / "data", *settings],
                stdout=log, stderr=log, **as_user,
            )  # fmt: skip
        ready = ("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port))
        until(lambda: subprocess.run(ready).returncode == 0, "postgres")
        yield f"postgresql+psycopg://espalier@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # SIGTERM waits for connected clients
        server.wait(30)
        shutil.rmtree(folder)


def write(number: int, folder: Path, together) -> None:
    """One writer: a training with a live view, then the report of the whole study, twice."""
    os.chdir(folder)
    together.wait()
    live = RunSpec("train", f"live-{number}", "sample")
    with open_tracker(live, folder / f"live-{number}.jsonl") as tracker:
        tracker.begin()
        for epoch in range(EPOCHS):
            tracker.metrics({"train/loss": 1.0 / (epoch + 1), "train/lr": 0.1}, epoch=epoch)
    for _ in range(2):
        together.wait()
        publish(write_study(folder))


def guarded(number: int, folder: Path, together) -> None:
    try:
        write(number, folder, together)
    except BaseException:
        (folder / f"error-{number}").write_text(traceback.format_exc())
        together.abort()
        raise


def steps(store: Store) -> dict[str, int]:
    """Number of metric points by the name of every run that is not in MLflow's bin."""
    found: dict[str, int] = {}
    for run in store.runs(""):
        points = sum(len(store.history(run.info.run_id, m)) for m in run.data.metrics)
        assert run.info.run_name not in found, f"{run.info.run_name} is there twice"
        found[run.info.run_name] = points
    return found


def test_four_writers_lose_and_double_nothing(uri, tmp_path, monkeypatch):
    (alone := tmp_path / "alone").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(alone))
    publish(write_study(alone))
    expected = steps(Store("sample"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(WRITERS, timeout=300)
    first = fork.Process(target=_make_tables, args=(uri,))  # takes longer than a live view waits
    first.start()
    first.join()
    for n in range(WRITERS):
        (tmp_path / str(n)).mkdir()
    writers = [
        fork.Process(target=guarded, args=(n, tmp_path / str(n), together)) for n in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    errors = [file.read_text() for file in tmp_path.rglob("error-*")]
    assert not errors, "\n".join(errors)
    store = Store("sample")
    found = steps(store)
    live = {
        run.info.run_name: len(store.history(run.info.run_id, "curve/train/loss"))
        for run in store.runs("tags.stage = 'train'")
        if "live" in run.info.run_name
    }
    assert live == {f"train/live-{n}": EPOCHS for n in range(WRITERS)}
    assert {name: n for name, n in found.items() if name not in live} == expected
