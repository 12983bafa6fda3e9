"""What `espalier run` and `espalier status` show: stage, node, epoch, time left, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runner.local import log_of
from pipeline.runner.task import Outcome, Task
from pipeline.runner.view import STATUS, RunView, read_status

A, B = Task("train@a", "stages.train", ()), Task("train@b", "stages.train", ())


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunView:
    monkeypatch.chdir(tmp_path)
    log_of("train@a").parent.mkdir(parents=True)
    return RunView(2, terminal=False)


def say(name: str, *lines: str) -> None:
    with log_of(name).open("a", encoding="utf-8") as log:
        log.writelines(f"{line}\n" for line in lines)


def shown(view: RunView) -> str:
    view._shown = 0.0  # as if a second had passed
    view.tick()
    return view._line()


def test_a_task_on_a_cluster(view: RunView) -> None:
    view.started(A)
    assert shown(view) == "0/2 | train@a"
    assert "train@a: 0 s, no epoch yet" in read_status()
    say("train@a", "on node1, job 7", "epoch 3/10  train/loss 0.5  lr 0.1  70 s left")
    assert shown(view) == "0/2 | train@a on node1 epoch 3/10, 70 s left"
    say("train@a", *["a warning of 40 characters, a long one"] * 200)
    assert shown(view) == "0/2 | train@a on node1", "the node is not forgotten in a long log"
    say("train@a", "on node2, job 8", "epoch 4/10  train/loss 0.5  lr 0.1  60 s left")
    shown(view)
    assert "train@a on node2: 0 s, epoch 4/10, 60 s left" in read_status()


def test_failures_come_last_with_their_log(
    view: RunView, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in (A, B):
        view.started(task)
    view.ended(A, Outcome.FAILED, "exit code 1")
    view.ended(B, Outcome.DONE)
    view.close()
    last = "train@a: exit code 1; log: .checkpoints/logs/train@a.log"
    assert capsys.readouterr().err.splitlines()[-1] == f"failed: {last}"
    told = read_status().splitlines()
    assert told[0].startswith("ended: 2 of 2 tasks")
    assert told[-1] == f"  failed: {last}"


def test_a_run_that_died(view: RunView) -> None:
    with pytest.raises(FileNotFoundError, match="no `espalier run` has been started in"):
        read_status()
    view.started(A)
    shown(view)
    told = json.loads(STATUS.read_text(encoding="utf-8"))
    STATUS.write_text(json.dumps(told | {"pid": 2**22 + 1}), encoding="utf-8")
    assert read_status().startswith("died: 0 of 2 tasks")
