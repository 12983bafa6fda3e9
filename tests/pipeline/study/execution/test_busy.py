"""A second process is refused before it touches anything, until the first has ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.cli.run import execute
from pipeline.study.execution.busy import BusyError, only_one


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with only_one("train@a"):
        told = f"train@a is running already in {tmp_path} .process {os.getpid()}."
        with pytest.raises(BusyError, match=told), only_one("train@a"):
            pytest.fail("twice")
        with only_one("train@b"):
            pass
    with only_one("train@a"):
        pass


def test_a_second_run_of_a_study_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would remove the outputs of stages that are running, and their logs."""
    monkeypatch.chdir(tmp_path)
    untouchable = None
    with (
        only_one("espalier run"),
        pytest.raises(BusyError, match="espalier run is running already"),
    ):
        execute(untouchable, untouchable, {}, untouchable)
