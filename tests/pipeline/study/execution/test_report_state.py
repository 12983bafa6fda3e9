"""A report may do nothing only while nothing that it reads, writes or fills has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.study import paths
from pipeline.study.execution import report_state

FILES = {
    "params.yaml": "study: s",
    "reports/records/train/a.json": "{}",
    "reports/tables/main.csv": "a",
    "reports/plots/compare.html": "<p>",
    "reports/local/compare.html": "<p>",
    "data/prepared/card.json": '{"files": {"train": 1}}',
    "artifacts/events/train/a.jsonl": "{}",
    "artifacts/finetune/a/plan.json": "{}",
    "mlflow.db": "rows",
    "mlartifacts/1/record.json": "{}",
    "code/pipeline/one.py": "1",
    "code/reports/papers/one.yaml": "1",
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder after a report."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(paths, "CODE", tmp_path / "code")
    save(monkeypatch)
    return tmp_path


def save(monkeypatch: pytest.MonkeyPatch, *running: str) -> None:
    store = SimpleNamespace(runs=lambda _: running)
    monkeypatch.setattr(report_state, "open_store", lambda _: store)
    report_state.save(report_state.inputs(), "s")


def test_nothing_changed(study: Path) -> None:
    assert report_state.is_current()
    (study / "code/pipeline/__pycache__").mkdir()
    (study / "code/pipeline/__pycache__/one.pyc").write_text("compiled")
    (study / "dvc.lock").write_text("stages:\n  report:\n    outs:\n    - path: reports/tables\n")
    assert report_state.is_current()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["edited", "deleted"])
def test_a_file_changed(study: Path, name: str, how: str) -> None:
    file = study / name
    if how == "deleted":
        file.unlink()
    else:
        file.write_text(FILES[name].replace("1", "2") + " ")
    assert not report_state.is_current()


@pytest.mark.parametrize("name", FILES)
def test_a_file_was_added(study: Path, name: str) -> None:
    parent = (study / name).parent
    if parent in (study, study / "data/prepared"):
        pytest.skip("only named files of this folder are read")
    (parent / f"more{Path(name).suffix}").write_text("1")
    assert not report_state.is_current()


def _list_another_record() -> None:
    digest = hashlib.md5(b"other").hexdigest()
    Path("dvc.lock").write_text(
        "stages:\n  train@a:\n    outs:\n    - path: reports/records/train/a.json\n"
        f"      md5: {digest}\n"
    )


CASES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "a server's database": lambda m: m.setenv("MLFLOW_TRACKING_URI", "http://x"),
    "another library": lambda m: m.setattr(report_state, "_versions", lambda: ["new"]),
    "another folder": lambda m: m.chdir(Path.cwd().rename(Path.cwd().with_name("moved"))),
    "another record listed": lambda _: _list_another_record(),
    "state damaged": lambda _: report_state.STATE.write_text("[]"),
    "state not JSON": lambda _: report_state.STATE.write_text("{"),
    "a run is open": lambda m: save(m, "run"),
}


@pytest.mark.usefixtures("study")
def test_what_a_server_got_is_not_in_the_local_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://x")
    save(monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not report_state.is_current()


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("case", CASES)
def test_in_doubt_it_reports(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CASES[case](monkeypatch)
    assert not report_state.is_current()


def test_a_folder_of_images_is_always_compared(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study / "data/prepared/card.json").write_text('{"files": {"images": 1}}')
    save(monkeypatch)
    assert not report_state.is_current()
