"""Publishing: one complete run per record hash; the report is the same on any machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.study.records.record import write_record
from pipeline.study.tracking.events import EventLog
from pipeline.study.tracking.provenance import is_dead, owner
from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.read_back import curves_for, runs_for
from pipeline.study.tracking.store import Store
from pipeline.study.tracking.study_runs import Study
from reports.build.report import build_report
from tests.reports.samples import eval_record, frame, sqlite_uri, train_record, write_study

# What mlflow 3.17 itself triggers in sqlalchemy 2.1 and alembic (2026-11).
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A database that holds the sample study; the tests work on copies."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(folder))
        publish(write_study(folder))
    return folder / "mlflow.db"


@pytest.fixture
def study(tmp_path, monkeypatch, published):
    shutil.copy(published, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return write_study(tmp_path)


def all_runs():
    return Store("sample").runs("")


def test_twice_is_once_and_nested(study):
    ids = publish(study)
    before = {r.info.run_id: dict(r.data.tags) for r in all_runs()}
    assert publish(study) == ids
    assert {r.info.run_id: dict(r.data.tags) for r in all_runs()} == before
    names = {r.info.run_id: r.info.run_name for r in all_runs()}
    assert len(names) == len(ids) == 15
    parents = {n: names.get(before[i].get("mlflow.parentRunId")) for i, n in names.items()}
    assert parents["train/resnet8-hspg-s0"] is None
    assert parents["resnet8-hspg-s0-p50"] == "train/resnet8-hspg-s0"
    assert parents["sweep/resnet8-dense-s0"] == "train/resnet8-dense-s0"
    assert parents["sweep/resnet8-dense-s0@0.9-bn"] == "sweep/resnet8-dense-s0"


def test_mlflow_gives_back_what_the_records_say(study):
    publish(study)
    for group in study.views.values():
        expected = frame(group)
        found = runs_for("sample", list(expected["record_sha"]))
        assert found[list(expected.columns)].equals(expected)


def test_a_run_can_be_read_without_the_report(study):
    ids = publish(study)
    store = Store("sample")
    run = next(r for r in all_runs() if r.info.run_name == "resnet8-hspg-s1-p50")
    sha = run.data.tags["record_sha"]
    assert ids[sha] == run.info.run_id
    assert run.data.tags["source"] == "republished"
    assert run.data.metrics["size/macs_kept"] == 9000
    assert run.data.metrics["seed"] == 1
    text = store._client.list_artifacts(run.info.run_id)
    assert [a.path for a in text] == ["record.json"]


def test_the_report_is_the_same_bytes_from_another_database(study, tmp_path, monkeypatch):
    build_report(study, tmp_path / "a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "other"))
    build_report(study, tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert {"tables/compare.html", "plots/compare.svg", "tables/main.md"} <= set(map(str, files))
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_event_files_add_times_hosts_and_latency_but_change_no_table(study, tmp_path):
    build_report(study, tmp_path / "a")
    entry, record = study.trainings[1], train_record("hspg", 0)
    log = EventLog(entry.events[0])
    log.append("tags", values={"host": "gpu-box", "git_commit": "abc"})
    for p in record.curve:
        log.append("metrics", values={**p.values, "time/epoch_s": 1.5}, epoch=p.epoch, step=p.step)
    log.append("metrics", values={"latency/batch1_ms": 0.7}, epoch=None, step=None)
    inside = record.curve[0].step - 1  # an evaluation on the grid of `evaluate_steps`
    log.append("metrics", values={"evaluation/loss": 0.5}, epoch=0, step=inside)
    log.close()
    again = replace(study)
    publish(again)
    run = next(r for r in all_runs() if r.data.tags["key"] == entry.key)
    assert run.data.tags["source"] == "republished"  # complete: not touched
    Store("sample").delete(run.info.run_id)
    build_report(again, tmp_path / "b")
    run = next(r for r in all_runs() if r.info.run_name == f"train/{entry.key}")
    assert run.data.tags["source"] == "published"
    assert run.data.tags["host"] == "gpu-box"
    assert run.data.metrics["latency/batch1_ms"] == 0.7
    assert run.data.metrics["curve/time/epoch_s"] == 1.5
    for path in (tmp_path / "a" / "tables").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "tables" / path.name).read_bytes()


def test_another_sparsity_adds_its_runs_only(study, tmp_path):
    before = publish(study)
    more = write_study(tmp_path, [0.3, 0.5, 0.9])
    after = publish(more)
    new = [r.info.run_name for r in all_runs() if r.info.run_id not in before.values()]
    top = "sweep/resnet8-dense-s0"
    points = [f"{top}@0.3{mark}" for mark in ("", "-bn", "-channels", "-channels-bn")]
    assert sorted(new) == [top, *points]
    sweep = after[more.views[top][0].sha]
    leaves = [r for r in all_runs() if r.data.tags["stage"] == "sweep-point"]
    assert {r.data.tags["mlflow.parentRunId"] for r in leaves} == {sweep}


def test_only_runs_of_the_present_records_are_read(study, tmp_path):
    publish(study)
    training = train_record("dense")
    changed = replace(eval_record(training), final={"loss": 0.2, "top1": 1.0})
    write_record(study.prunings[0].record, changed)
    rows = build_report(replace(study), tmp_path / "out")[0].rows
    assert rows["final_top1"][0] == 1.0
    write_record(study.prunings[0].record, eval_record(training))
    rows = build_report(replace(study), tmp_path / "out")[0].rows
    assert rows["final_top1"][0] == 95.0  # the older run, not the latest


def test_a_run_somebody_edited_is_replaced(study):
    ids = publish(study)
    sha = study.views["evaluate/resnet8-dense-s0-p50"][0].sha
    Store("sample")._client.log_metric(ids[sha], "final/top1", 99.9, step=5)
    assert runs_for("sample", [sha])["metrics.final/top1"][0] == 99.9
    assert publish(study)[sha] != ids[sha]
    assert runs_for("sample", [sha])["metrics.final/top1"][0] == 95.0


def test_runs_of_dead_processes_are_settled(study):
    dead = subprocess.Popen([sys.executable, "-c", "0"])
    dead.wait()
    gone = f"{socket.gethostname()}:{dead.pid}:1"
    store = Store("sample")

    def run(stage: str, key: str, who: str) -> str:
        return store.create(f"{stage}/{key}", {"stage": stage, "key": key, "owner": who})

    superseded = run("train", "resnet8-hspg-s0", gone)
    finetune = run("finetune", "resnet8-hspg-s0-p50", gone)
    store.end(finetune, "FINISHED")
    killed, alive = run("train", "other", gone), run("train", "resnet8-hspg-s1", owner())
    publish(study)
    states = {r.info.run_id: r.info.status for r in all_runs()}
    assert superseded not in states
    assert finetune not in states
    assert states[killed] == "KILLED"
    assert states[alive] == "RUNNING"


def test_the_same_work_twice_is_one_run(study):
    (view,) = study.views["train/resnet8-hspg-s0"]
    store = Store("sample")
    again = store.create(view.name, {"stage": "train", "key": view.key, "owner": owner()})
    store.describe(again, view.params, view.tags)
    store.log(again, view.points)
    store.seal(again, view)
    ids = publish(study)
    assert ids[view.sha] != again
    assert again not in {r.info.run_id for r in all_runs()}


def test_half_a_run_is_never_taken_for_one(study, monkeypatch):
    def power_cut(*_):
        raise OSError("power cut")

    one = Study("half", study.trainings[:1])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "seal", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            publish(one)
    sha = one.views["train/resnet8-dense-s0"][0].sha
    with pytest.raises(KeyError, match="no finished run"):
        runs_for("half", [sha])
    publish(one)
    assert list(runs_for("half", [sha])["run"]) == ["train/resnet8-dense-s0"]


def test_a_row_made_from_another_training_is_refused(study):
    write_record(study.trainings[1].record, train_record("hspg", 0, lr=0.3))
    with pytest.raises(ValueError, match=r"resnet8-hspg-s0-p50\.json: made from another record"):
        publish(study)


def test_a_damaged_record_is_named(study):
    study.prunings[0].record.write_text("{")
    with pytest.raises(ValueError, match=r"resnet8-dense-s0-p50\.json: not a EvalRecord"):
        publish(study)


def test_curves_come_from_mlflow(study):
    publish(study)
    curve = curves_for("sample", [study.views["train/resnet8-hspg-s1"][0].sha])
    top1 = curve[curve["metric"] == "validation/top1"]
    assert list(top1["epoch"]) == [0, 1, 2]
    assert list(top1["value"]) == [81.0, 86.0, 91.0]


def test_who_is_dead():
    assert not is_dead(owner())
    assert is_dead(f"{socket.gethostname()}:{os.getpid()}:0")  # the pid was given again
    assert not is_dead("elsewhere:1:1")
    assert not is_dead("nonsense")


def test_two_reports_at_once_keep_the_same_runs(study, monkeypatch):
    """The second one does not see the runs of the first when it looks: each would delete those of
    the other."""
    before = publish(study)
    real, looks = Store.sealed, []

    def sealed(store: Store):
        looks.append(store)
        return {} if len(looks) == 1 else real(store)

    monkeypatch.setattr(Store, "sealed", sealed)
    assert publish(study) == before
    assert {run.info.run_id for run in all_runs()} == set(before.values())


def test_another_writer_inserts_the_same_data_set_first(study, monkeypatch, tmp_path):
    import mlflow

    real, calls = mlflow.MlflowClient.log_inputs, []

    def log_inputs(client, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise mlflow.exceptions.MlflowException("duplicate key value", error_code=3)
        return real(client, *arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", log_inputs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "fresh"))
    publish(study)
    assert all(run.inputs.dataset_inputs for run in all_runs())
