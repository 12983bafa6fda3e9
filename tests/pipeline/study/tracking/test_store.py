"""The tracker: events first, MLflow as a view that can never stop or slow a training."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.study.records.record import write_record
from pipeline.study.tracking import mirror
from pipeline.study.tracking.database import tracking_uri
from pipeline.study.tracking.events import read_events
from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.read_back import curves_for, runs_for
from pipeline.study.tracking.record_views import train_view, training_spec
from pipeline.study.tracking.run_views import RunSpec
from pipeline.study.tracking.store import Store
from pipeline.study.tracking.study_runs import Entry, Study
from pipeline.study.tracking.tracker import open_tracker
from tests.reports.samples import sqlite_uri, train_record

# What mlflow 3.17 itself triggers in sqlalchemy 2.1 and alembic (2026-11).
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
RECORD = train_record()
DRAFT = replace(RECORD, curve=(), weights_sha="")


def spec() -> RunSpec:
    return training_spec(DRAFT, "sample", {"device": "cpu"})


def tell(tracker, points=RECORD.curve) -> None:
    for p in points:
        tracker.metrics({**p.values, "time/epoch_s": 0.1}, epoch=p.epoch, step=p.step)


@pytest.fixture
def database(tmp_path, monkeypatch):
    uri = sqlite_uri(tmp_path / "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("ESPALIER_MLFLOW", raising=False)
    return uri


def study_of(tmp_path: Path, events: Path) -> Study:
    path = tmp_path / "records" / "train.json"
    write_record(path, RECORD)
    return Study("sample", [Entry(RECORD.training, RECORD.training, path, (events,))])


def test_importing_costs_neither_mlflow_nor_torch():
    code = (
        "import sys; "
        "import pipeline.study.tracking.store, pipeline.study.tracking.publish;"
        "import reports.build.tables;"
        "assert not {'mlflow', 'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_is_sqlite_at_the_root(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/repo")
    assert tracking_uri() == "sqlite:////repo/mlflow.db"


def test_a_live_run_is_the_run_of_its_record(tmp_path, database, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # a launcher's run is not ours
    events = tmp_path / "events.jsonl"
    with open_tracker(spec(), events, work=tmp_path / "work.jsonl") as t:
        t.begin()
        tell(t)
        assert not events.exists()
        t.finish(train_view(RECORD))
    assert not (tmp_path / "work.jsonl").exists()
    (before,) = Store("sample").runs("")
    ids = publish(study_of(tmp_path, events))
    (run,) = Store("sample").runs("")
    assert list(ids.values()) == [run.info.run_id] == [before.info.run_id]
    assert run.info.status == "FINISHED"
    assert run.data.tags["source"] == "live"
    assert run.data.tags["device"] == "cpu"
    assert run.data.tags["torch"]
    assert run.data.metrics["curve/validation/top1"] == 90.0
    assert run.data.metrics["time/session_s"] >= 0
    assert run.data.params["method_params.epsilon"] == "0.9"
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"


def test_a_resumed_training_is_one_run_without_duplicates(tmp_path, database):
    events, work = tmp_path / "events.jsonl", tmp_path / "work.jsonl"
    offsets = []

    def interrupted() -> None:
        with open_tracker(spec(), events, work=work) as t:
            t.begin()
            tell(t, RECORD.curve[:1])
            offsets.append(t.offset())
            tell(t, RECORD.curve[1:2])
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        interrupted()
    (run,) = Store("sample").runs("")
    assert run.info.status == "FAILED"
    with open_tracker(spec(), events, work=work) as t:
        t.begin(offsets[0])
        tell(t, RECORD.curve[1:])
        t.finish(train_view(RECORD))
    store = Store("sample")
    (run,) = store.runs("")
    assert run.info.status == "FINISHED"
    assert run.data.tags["resumed"] == "1"
    steps = [p.step for p in store.history(run.info.run_id, "curve/train/loss")]
    assert steps == [10, 20, 30]
    publish(study_of(tmp_path, events))
    assert len(store.runs("")) == 1


def test_a_fresh_start_does_not_continue_an_older_run(tmp_path, database):
    for _ in range(2):
        with open_tracker(spec(), tmp_path / "e.jsonl") as t:
            tell(t)
    assert len(Store("sample").runs("")) == 2


def test_without_mlflow_training_goes_on_with_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with open_tracker(spec(), tmp_path / "e.jsonl") as t:
        tell(t)
        t.finish(train_view(RECORD))
    assert len([e for e in read_events(tmp_path / "e.jsonl") if e.kind == "metrics"]) == 4
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "train/resnet8-hspg-s0" in warnings[0].getMessage()
    with pytest.raises(RuntimeError, match="pip install"):
        publish(study_of(tmp_path, tmp_path / "e.jsonl"))


@pytest.mark.parametrize("how", ["off", "not live"])
def test_mirroring_can_be_off(tmp_path, monkeypatch, how):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ESPALIER_MLFLOW", "off" if how == "off" else "")
    with open_tracker(spec(), tmp_path / "e.jsonl", live=how == "off") as t:
        tell(t)
    assert (tmp_path / "e.jsonl").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_hanging_server_does_not_delay_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mirror, "LAST_WAIT_S", 0.2)
    release = threading.Event()
    hanging = mirror.Mirror(lambda: release.wait(30) or pytest.fail("never answered"), spec())
    monkeypatch.setattr("pipeline.study.tracking.tracker.Mirror", lambda *_: hanging)
    begun = time.monotonic()
    with open_tracker(spec(), tmp_path / "e.jsonl") as t:
        tell(t)
        assert time.monotonic() - begun < 5
        t.finish(train_view(RECORD))
    assert "no answer within 0.2 s" in caplog.text
    assert hanging.failed
    release.set()


def _free_port() -> int:
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port),
               "--backend-store-uri", sqlite_uri(folder),
               "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        with closing(socket.socket()) as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the server did not start within a minute")


@pytest.mark.slow
def test_a_server_killed_mid_training_costs_nothing(tmp_path, monkeypatch, caplog):
    port = _free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    server = _server(tmp_path / "server", port)
    try:
        _wait_for(port, server)
        with open_tracker(spec(), tmp_path / "e.jsonl") as t:
            tell(t, RECORD.curve[:1])
            _until_logged()
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)
            begun = time.monotonic()
            tell(t, RECORD.curve[1:])
            assert time.monotonic() - begun < 1
            t.finish(train_view(RECORD))
        assert time.monotonic() - begun < mirror.LAST_WAIT_S
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)
    assert [r.levelno for r in caplog.records if r.name == "espalier.tracking"] == [30]
    with pytest.raises(RuntimeError, match="MLflow does not answer"):
        publish(study_of(tmp_path, tmp_path / "e.jsonl"))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "fresh"))
    study = study_of(tmp_path, tmp_path / "e.jsonl")
    (sha,) = publish(study)
    run = runs_for("sample", [sha]).iloc[0]
    assert run["tags.source"] == "published"
    assert run["metrics.curve/validation/top1"] == 90.0
    curve = curves_for("sample", [sha])
    assert list(curve[curve["metric"] == "train/loss"]["step"]) == [10, 20, 30]


def _until_logged() -> None:
    store = Store("sample")
    for _ in range(200):
        runs = store.runs("")
        if runs and "curve/train/loss" in runs[0].data.metrics:
            return
        time.sleep(0.1)
    pytest.fail("nothing arrived at the server")


@pytest.mark.slow
def test_six_processes_may_meet_in_a_fresh_database(tmp_path):
    code = (
        "from pipeline.study.tracking.store import Store; import sys\n"
        "store = Store('sample'); store.end(store.create(sys.argv[1], {}), 'FINISHED')"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, f"r{i}"], env=environment) for i in range(6)
    ]
    try:
        assert [p.wait(600) for p in processes] == [0] * 6  # 107 s on two busy cores
    finally:
        for process in processes:
            process.kill()
            process.wait()
    store = Store("sample", environment["MLFLOW_TRACKING_URI"])
    assert sorted(r.info.run_name for r in store.runs("")) == [f"r{i}" for i in range(6)]
