"""`espalier status`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli.status import status
from pipeline.files import write_json

NOTHING = {"pid": 0, "running": False, "since": 0.0, "total": 2, "tasks": {}, "failures": {}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the command changes it
    (tmp_path / "params.yaml").write_text("study: t\nparts: [one, two]\n", encoding="utf-8")
    return tmp_path


def ran(folder: Path, done: int) -> None:
    (folder / ".checkpoints").mkdir(parents=True)
    write_json(folder / ".checkpoints/run.json", NOTHING | {"outcomes": {"done": done}})


def asked(folder: Path) -> Result:
    return CliRunner().invoke(status, [str(folder)])


def test_the_parts_of_a_study_are_shown(folder: Path) -> None:
    ran(folder / "two", 1)
    assert asked(folder).output.startswith("two:\nended: 1 of 2 tasks")
    ran(folder, 2)
    told = asked(folder).output
    assert told.startswith("ended: 2 of 2 tasks")
    assert "\ntwo:\nended: 1 of 2 tasks" in told


def test_no_run_was_started(folder: Path) -> None:
    told = asked(folder)
    assert told.exit_code == 2
    assert "no `espalier run` has been started in" in told.output
