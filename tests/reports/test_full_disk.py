"""A report on a full disk: one line with file and free space; the last report stays, whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reports.build.report import build_report
from tests.faults.disks import room, small_file_system
from tests.reports.samples import sqlite_uri, write_study
from tests.study import tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, "8m"):
        yield tmp_path


def test_the_last_report_stays(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk is full when the database is written, and when a figure is."""
    monkeypatch.chdir(disk)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(disk))
    study, out = write_study(disk), disk / "reports"
    build_report(replace(study, prunings=study.prunings[:1]), out)
    before = tree(out)
    assert len(before) > 5
    capfd.readouterr()
    told = rf"{disk}/mlflow\.db: the disk is full \(\d\.\d MB free\)\. Records are complete; free"
    with room(disk, 0), pytest.raises(RuntimeError, match=f"^MLflow's store: {told}"):
        build_report(study, out)
    assert tree(out) == before
    told = rf"{out}/local/\.new/plots/[\w.-]+: the disk is full \(\d\.\d MB free\)$"
    with room(disk, 500_000), pytest.raises(OSError, match=told):
        build_report(study, out)
    assert tree(out) == before
    assert "Traceback" not in capfd.readouterr().err
    build_report(study, out)
    assert tree(out) != before
