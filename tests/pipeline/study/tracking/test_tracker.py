"""The event file may move to another file system, and is written again if it was lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.study.tracking.events import read_events
from pipeline.study.tracking.run_views import RunSpec
from pipeline.study.tracking.tracker import Tracker

SPEC = RunSpec("train", "a", "sample", {"lr": "0.1"}, {"training": "a"})


def epochs(path: Path) -> list[int]:
    found = [e.data["epoch"] for e in read_events(path) if e.kind == "metrics"]
    return [epoch for epoch in found if epoch is not None]


def test_checkpoints_may_lie_on_another_file_system(small_disk: Path, tmp_path: Path) -> None:
    work, events = small_disk / "a.events.jsonl", tmp_path / "events/a.jsonl"
    tracker = Tracker(SPEC, events, work)
    tracker.metrics({"train/loss": 1.0}, epoch=0, step=1)
    tracker.finish()
    assert epochs(events) == [0]
    assert not work.exists()


@pytest.mark.parametrize("damage", ["deleted", "shortened", "a line in the middle", "whole"])
def test_a_resumed_run_says_whether_its_past_is_lost(tmp_path: Path, damage: str) -> None:
    work = tmp_path / "a.events.jsonl"
    tracker = Tracker(SPEC, tmp_path / "e.jsonl", work)
    for epoch in (0, 1):
        tracker.metrics({"train/loss": 1.0}, epoch=epoch, step=epoch)
    offset = tracker.offset()
    tracker.stop("KILLED")
    data = work.read_bytes()
    if damage == "deleted":
        work.unlink()
    elif damage == "shortened":
        work.write_bytes(data[:-30])
    elif damage != "whole":
        work.write_bytes(data.replace(b'"kind": "tags"', b'"kind": "togs"'))
    again = Tracker(SPEC, tmp_path / "e.jsonl", work)
    assert again.begin(offset) is (damage != "whole")
    again.metrics({"train/loss": 1.0}, epoch=2, step=2)
    assert epochs(work) == ([0, 1, 2] if damage == "whole" else [2])
    assert [e.kind for e in read_events(work)][:2] == ["params", "tags"]
    again.stop("KILLED")
