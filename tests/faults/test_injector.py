"""The injector itself, on a small program in place of a study: it strikes, and it notices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import study
from tests.faults import injector as module
from tests.faults.injector import Injector, can_mount

# Two stages that take a moment each, then a result; with "team", two processes do the first.
PROGRAM = """
import os, pathlib, subprocess, sys, time

def stage(name):
    lock = pathlib.Path(".checkpoints", name + ".lock")
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(str(os.getpid()))
    time.sleep(0.2)

if "processes: 2" in pathlib.Path("params.yaml").read_text():
    wait = "import time; time.sleep({})"
    team = [subprocess.Popen([sys.executable, "-c", wait.format(1), "stages.train"],
                             env=os.environ | {"RANK": str(r)}) for r in range(2)]
    while any(p.poll() is None for p in team):
        if any(p.poll() for p in team):
            LEAVE or [p.kill() for p in team]
            sys.exit("error: a process was killed")
        time.sleep(0.01)
for name in ("train@a", "evaluate@a"):
    stage(name)
runs = pathlib.Path("runs")
runs.write_text(runs.read_text() + "+" if runs.exists() else "+")
result = pathlib.Path("reports/records/a.json")
result.parent.mkdir(parents=True, exist_ok=True)
try:
    result.write_text(RESULT)
except OSError as error:
    result.unlink()
    sys.exit(f"error: {error}")
"""
WHOLE, COUNTED = "'1' * 7_000_000", "runs.read_text()"


@pytest.fixture
def inject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An injector whose runs are the program with this result."""

    def made(result: str, leave: bool = False) -> Injector:
        program = PROGRAM.replace("RESULT", result).replace("LEAVE", str(leave))
        monkeypatch.setattr(module, "RUN", (sys.executable, "-c", program))
        monkeypatch.setattr(study, "environment", lambda *_, **__: {})
        (tmp_path / "home").mkdir()
        (tmp_path / "params.yaml").write_text(study.PARAMS)
        monkeypatch.setattr(
            study, "create", lambda folder: _created(folder, tmp_path / "params.yaml")
        )
        return Injector(tmp_path / "home", seed=1)

    return made


def _created(folder: Path, params: Path) -> Path:
    folder.mkdir()
    (folder / "params.yaml").write_bytes(params.read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["kill", "kill_stage", "kill_team", "lose"])
def test_a_program_that_repeats_itself_survives(inject, kind: str) -> None:
    injector = inject(WHOLE)
    module.DAMAGED, before = ("reports/records",), module.DAMAGED
    try:
        verdict = injector.apply(getattr(injector, kind))
    finally:
        module.DAMAGED = before
    assert verdict.outcome == "same", verdict


def test_other_bytes_are_noticed(inject) -> None:
    injector = inject(COUNTED)
    verdict = injector.apply(lambda _: "nothing")
    assert verdict.outcome == "other bytes: reports/records/a.json"


def test_processes_that_outlive_a_training_are_noticed(inject) -> None:
    injector = inject(WHOLE, leave=True)
    verdict = injector.apply(injector.kill_team)
    assert "outlive the training" in verdict.outcome


@pytest.mark.skipif(not can_mount(), reason="mounting a small file system needs root")
def test_a_disk_fills(inject) -> None:
    injector = inject(WHOLE)
    verdict = injector.apply(injector.fill)
    assert verdict.outcome == "same"
    assert verdict.fault.endswith("exit 1")
