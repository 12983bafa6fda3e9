"""Event files survive kills: only complete lines, and nothing after the last checkpoint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.study.tracking.events import EventLog, read_events


def metric(log: EventLog, epoch: int) -> None:
    log.append("metrics", values={"train/loss": 1.0 / (epoch + 1)}, epoch=epoch, step=epoch * 10)


def epochs(path) -> list[int]:
    return [e.data["epoch"] for e in read_events(path) if e.kind == "metrics"]


def test_events_read_back_in_order(tmp_path):
    path = tmp_path / "a" / "e.jsonl"
    log = EventLog(path)
    log.append("params", values={"seed": "0"})
    metric(log, 0)
    log.append("note", text="zwei Wörter\nund ein Umbruch")
    events = read_events(path)  # flushed: readable while the stage still runs
    assert [e.kind for e in events] == ["params", "metrics", "note"]
    assert events[1].data == {"values": {"train/loss": 1.0}, "epoch": 0, "step": 0}
    assert events[2].data["text"].endswith("Umbruch")
    assert events[0].time <= events[1].time
    log.close()


@settings(max_examples=30)
@given(cut=st.integers(min_value=1, max_value=60))
def test_a_torn_last_line_is_left_out(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "e.jsonl"
    log = EventLog(path)
    for epoch in range(3):
        metric(log, epoch)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert epochs(path) == [0, 1]
    again = EventLog(path)
    metric(again, 7)
    again.close()
    assert epochs(path) == [0, 1, 7]


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    metric(log, 0)
    checkpoint = log.offset()
    metric(log, 1)
    log.close()
    resumed = EventLog(path)
    resumed.truncate(checkpoint)
    metric(resumed, 1)
    metric(resumed, 2)
    resumed.close()
    assert epochs(path) == [0, 1, 2]


@pytest.mark.parametrize("offset", [1, 10_000])
def test_an_event_file_that_lost_its_lines_begins_anew(tmp_path, offset):
    log = EventLog(tmp_path / "e.jsonl")
    metric(log, 0)
    assert not log.truncate(offset)
    metric(log, 1)
    log.close()
    assert epochs(log.path) == [1]


@pytest.mark.parametrize(
    "line", [b"{", b'{"kind": "metrics"}', b'{"kind": "sound", "time": 1}', b"[1]", b"\xff\xfe"]
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    metric(log, 0)
    log.close()
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"e\.jsonl, line 2"):
        read_events(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused_and_not_written(tmp_path, value):
    log = EventLog(tmp_path / "e.jsonl")
    with pytest.raises(ValueError, match=r"e\.jsonl: metric 'x' is"):
        log.append("metrics", values={"x": value}, epoch=0, step=0)
    log.close()
    assert read_events(tmp_path / "e.jsonl") == []
