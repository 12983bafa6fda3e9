"""Params may count as known to be valid only while nothing that decides it has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.study import paths
from pipeline.study.execution import checked, commands
from pipeline.study.params import load
from pipeline.study.params.errors import ParamsError
from stages.check import main

FILES = {
    "params.yaml": "study: s\nparts: [one]\n",
    "one/params.yaml": "study: s\n",
    "dvc.yaml": "stages: {}\n",
    "code/pipeline/study/schema.py": "1",
    "code/methods/hspg/__init__.py": "1",
    "code/models/small.py": "1",
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose params are valid, without any validation yet."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "CODE", tmp_path / "code")
    monkeypatch.setattr(load, "load_params", lambda: None)
    monkeypatch.setattr(commands, "OURS", (*commands.OURS, "tests"))
    return tmp_path


def refused(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether `check` validates now; the validation fails."""

    def fail() -> None:
        raise ParamsError("params.yaml: no")

    monkeypatch.setattr(load, "load_params", fail)
    result = CliRunner().invoke(main, [])
    assert ("error: params.yaml: no" in result.output) == bool(result.exit_code)
    return bool(result.exit_code)


def test_what_was_valid_is_not_validated_again(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(main, []).exit_code == 0
    assert not refused(monkeypatch)


@pytest.mark.parametrize("changed", FILES)
def test_any_change_is_validated(
    changed: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(main, []).exit_code == 0
    (study / changed).write_text(FILES[changed] + "# more\n")
    assert refused(monkeypatch)
    assert refused(monkeypatch)  # a failed validation is not remembered


def test_a_damaged_note_is_no_error(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(main, []).exit_code == 0
    checked.STATE.write_bytes(b"\xff")
    assert refused(monkeypatch)


def test_a_missing_or_unreadable_file_is_for_the_validation(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study / "params.yaml").write_bytes(b"\xff")
    assert refused(monkeypatch)
    (study / "params.yaml").unlink()
    assert refused(monkeypatch)
