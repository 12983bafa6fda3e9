"""Slices of a study: longest first, stopped at a checkpoint, resumed; SIGTERM and who obeys it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import campaign
from pipeline.cli.campaign import Clock, execute, longest_first, missing
from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.files import load_tree
from pipeline.study import paths
from pipeline.study.execution.progress import Progress
from pipeline.study.execution.stopping import STOPPED, StopRequest
from pipeline.study.params.load import load_params
from tests import study

MORE = """\
  long: {model: {family: small, name: resnet8, width: 4}, method: dense, train: {epochs: 9}}
  wide: {model: {family: small, name: resnet8, width: 16}, method: dense, train: {epochs: 2}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """params.yaml and prepared data, as a bundle has them."""
    monkeypatch.chdir(tmp_path)
    text = study.PARAMS.replace("prunings:\n", f"{MORE}prunings:\n")
    (tmp_path / "params.yaml").write_text(text)
    prepare(DataConfig(name="digits", val_size=100, limit=200), paths.PREPARED)
    return tmp_path


def test_longest_first_by_epochs_and_macs(folder):
    params = load_params()
    assert longest_first(params, list(params.file.trainings)) == ["wide", "long", "a", "h"]


def test_without_dvc_a_training_is_done_when_its_record_stands(folder):
    params = load_params()
    record, weights = paths.record("train", "a"), paths.training("a") / "final/model.safetensors"
    for file in (record, weights):
        assert "a" in missing(params, "plain")
        file.parent.mkdir(parents=True)
        file.touch()
    assert missing(params, "plain") == ["h", "long", "wide"]


def test_a_slice_goes_on_after_a_failure_and_says_what_is_left(folder, monkeypatch):
    ran = []

    def pretend(command, clock):
        ran.append(command[-1])
        return {"wide": "failed", "a": "stopped"}.get(command[-1], "done")

    monkeypatch.setattr(campaign, "execute", pretend)
    failed, left = campaign.run(load_params(), "plain", Clock.minutes(None, 1.0))
    assert (ran, failed, left) == (["wide", "long", "a"], ["wide"], ["a", "h"])


def test_no_time_no_training(folder, monkeypatch):
    monkeypatch.setattr(campaign, "execute", lambda *_: pytest.fail("started"))
    failed, left = campaign.run(load_params(), "plain", Clock.minutes(0.0, 1.0))
    assert not failed
    assert left[0] == "wide"


def test_the_holder_of_a_lock_is_asked_and_nobody_else(folder):
    Path(".checkpoints").mkdir()
    (free := Path(".checkpoints/train@free.lock")).write_text(f"{os.getpid()}\n")
    script = (
        "import fcntl, os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "f = open('.checkpoints/train@held.lock', 'a'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "f.write(str(os.getpid())); f.flush(); time.sleep(60)\n"
    )
    held = subprocess.Popen([sys.executable, "-c", script])
    try:
        while not (lock := Path(".checkpoints/train@held.lock")).exists() or not lock.read_text():
            time.sleep(0.02)
        campaign._ask_stage()
        assert held.wait(20) == 7
    finally:
        held.kill()
    with free.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_end_that_nobody_obeys_is_enforced(folder, monkeypatch):
    monkeypatch.setattr(campaign, "_PATIENCE_S", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    clock = Clock(time.monotonic() + 0.5, 0.1)
    assert execute([sys.executable, "-c", deaf], clock) == "stopped"
    assert execute([sys.executable, "-c", "raise SystemExit(3)"], Clock.minutes(1, 1)) == "failed"


class Endless:
    """Batches of five steps, an observer that counts."""

    def __len__(self):
        return 5

    def epoch(self, epoch, start_step=0, part=None):
        return iter(range(start_step, 5))

    def offset(self):
        return 0

    def begin(self, offset=0):
        pass

    def metrics(self, values, *, epoch, step):
        pass


def test_a_training_stops_behind_a_checkpoint_only():
    progress = Progress(Endless(), Endless(), 3, terminal=False)
    try:
        steps = progress.epoch(0)
        next(steps)
        os.kill(os.getpid(), signal.SIGTERM)
        assert [next(steps) for _ in range(3)] == [1, 2, 3]  # no checkpoint yet: on
        progress.offset()
        with pytest.raises(SystemExit) as stopped:
            next(steps)
        assert stopped.value.code == STOPPED == 143
    finally:
        progress.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_request_ends_at_once():
    script = (
        "import os, signal, time\nfrom pipeline.study.execution.stopping import StopRequest\n"
        "r = StopRequest(); os.kill(os.getpid(), 15); assert r.asked\n"
        "os.kill(os.getpid(), 15); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=study.REPOSITORY, timeout=60)
    assert done.returncode == -signal.SIGTERM


def test_other_threads_leave_signals_alone():
    import threading

    found = []
    thread = threading.Thread(target=lambda: found.append(StopRequest()))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    found[0].close()


@pytest.mark.slow
def test_a_real_slice_stops_at_a_checkpoint_and_the_next_resumes(tmp_path):
    params = study.PARAMS.replace("  h: {", "  h: {train: {epochs: 4000}, ")
    folder = study.create(tmp_path / "study", params)
    checkpoint = folder / ".checkpoints/train/h/last.safetensors"

    def slices(until: int) -> tuple[str, dict[str, int]]:
        """Slices until an epoch is done: on a busy machine one may pass before the first step."""
        command = (sys.executable, "-m", "pipeline.cli", "campaign", "--budget-minutes", "0.6")
        for _ in range(10):
            said = study.run(folder, *command, check=False)
            assert "the time is up; still to do: h" in said, said[-3000:]
            counters = load_tree(checkpoint)["counters"] if checkpoint.exists() else {"epoch": 0}
            if counters["epoch"] > until:
                break
        return said, counters

    said, first = slices(0)
    assert "exited with 143" in said
    assert 0 < first["epoch"] < 4000
    assert first["step_in_epoch"] == 0
    said, later = slices(first["epoch"])
    assert "resumed from the last checkpoint" in said, said[-3000:]
    assert later["epoch"] > first["epoch"]
