"""The SQLite file of MLflow: odd paths, copies, damage, lost artifacts and points."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.study.tracking import database
from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.store import Store, open_store
from tests.reports.samples import sqlite_uri, write_study

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database, artifacts and the sample study, made by a process of its own:
    MLflow remembers where the artifacts of a run were."""
    folder = tmp_path_factory.mktemp("published")
    code = (
        "from pathlib import Path; from tests.reports.samples import write_study\n"
        "from pipeline.study.tracking.publish import publish\n"
        f"publish(write_study(Path({str(folder)!r})))"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": sqlite_uri(folder)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True)
    return folder


@pytest.fixture
def copied(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, under another name; the tests work there."""
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    return folder


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "mlflow.db")) as db, db:
        db.execute(statement)


def test_a_folder_with_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b?c#d%41"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store("odd")
    store.attach_document(run := store.create("one", {}), "text")
    assert (folder / "mlflow.db").stat().st_size > 0
    assert (folder / f"mlartifacts/{run}/artifacts/record.json").read_text() == "text"
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name]


def test_a_copy_writes_into_its_own_folder(copied: Path, published: Path) -> None:
    study, before = write_study(copied), sorted(published.rglob("*"))
    publish(study)
    store = open_store(study.name)
    for run in store.sealed().values():
        path = database.local_path(run.info.artifact_uri)
        assert path is not None
        assert path.is_relative_to(copied / "mlartifacts")
        assert (path / "record.json").is_file()
    made = store.create("new", {})
    store.attach_document(made, "text")
    assert (copied / f"mlartifacts/{made}/artifacts/record.json").is_file()
    assert sorted(published.rglob("*")) == before
    assert str(published) not in "".join(_texts(copied / "mlflow.db"))


def _texts(file: Path) -> list[str]:
    """Every path to artifacts in a database."""
    with closing(sqlite3.connect(file)) as db:
        asked = "SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM experiments"
        return [text for (text,) in db.execute(asked) if "mlartifacts" in text]


def truncate(folder: Path) -> None:
    file = folder / "mlflow.db"
    file.write_bytes(file.read_bytes()[:100_000])


def overwrite(folder: Path) -> None:
    (folder / "mlflow.db").write_text("not a database" * 100)


def interrupt(folder: Path) -> None:
    change(folder, "CREATE TABLE _alembic_tmp_experiments (experiment_id INTEGER)")


@pytest.mark.parametrize(
    ("harm", "said"),
    [(truncate, ""), (overwrite, "not a database"), (interrupt, "interrupted at experiments")],
)
def test_a_damaged_file_is_set_aside_and_filled_again(
    copied: Path, caplog: pytest.LogCaptureFixture, harm, said: str
) -> None:
    harm(copied)
    study = write_study(copied)
    ids = publish(study)
    assert "is damaged" in caplog.text
    assert said in caplog.text
    assert (copied / "mlflow.db.damaged").is_file()
    assert set(open_store(study.name).sealed()) == set(ids)


def test_a_set_up_that_is_killed_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(uri: str) -> None:
        (tmp_path / ".mlflow.db.new").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.make_ready(tmp_path / "mlflow.db", killed)
    assert not (tmp_path / "mlflow.db").exists()
    database.make_ready(tmp_path / "mlflow.db", lambda _: _make(tmp_path / ".mlflow.db.new"))
    assert database.damage(tmp_path / "mlflow.db") == ""
    assert [p.name for p in tmp_path.iterdir()] == ["mlflow.db"]


def _make(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE experiments (artifact_location TEXT)")


def test_lost_artifacts_are_written_again(copied: Path) -> None:
    before = {p.relative_to(copied): p.read_bytes() for p in copied.rglob("record.json")}
    assert before
    shutil.rmtree(copied / "mlartifacts")
    publish(write_study(copied))
    assert {p.relative_to(copied): p.read_bytes() for p in copied.rglob("record.json")} == before


@pytest.mark.parametrize("where", ["rowid % 2", "key = 'final/top1'"])
def test_complete_means_every_point(copied: Path, where: str) -> None:
    count = "SELECT COUNT(*) FROM metrics m JOIN runs r USING (run_uuid) WHERE lifecycle_stage = "

    def points() -> int:
        with closing(sqlite3.connect(copied / "mlflow.db")) as db:
            return int(db.execute(f"{count} 'active'").fetchone()[0])

    study = write_study(copied)
    publish(study)
    whole = points()
    change(copied, f"DELETE FROM metrics WHERE {where}")
    assert points() < whole
    publish(study)
    assert points() == whole
