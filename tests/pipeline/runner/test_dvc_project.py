"""The driver's DVC project costs the same per stage, however many stages went before."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.study.scale import FakeEngine, make
from pipeline.runner.driver import Driver
from pipeline.runner.dvc_project import DvcProject
from pipeline.runner.task import Outcome
from pipeline.runner.view import RunView

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")


def test_trees_do_not_pile_up_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC leaves the tree of every folder that it hashed in fsspec's global file system."""
    monkeypatch.chdir(tmp_path)
    make(2)
    project = DvcProject()
    from fsspec.implementations.memory import MemoryFileSystem

    driver = Driver(project, FakeEngine(), RunView(2, False), lambda _: 1.0)
    assert set(driver.run(project.tasks()).values()) == {Outcome.DONE}
    assert not MemoryFileSystem.store
    assert DvcProject().unchanged(["train@t0000", "train@t0001"]), "and the cache has them all"
