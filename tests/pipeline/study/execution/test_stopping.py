"""SIGTERM: a training stops at a checkpoint, a second request ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pipeline.study.execution.progress import Progress
from pipeline.study.execution.stopping import IN_JOB, STOPPED, StopRequest
from tests import study


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


def test_in_a_job_of_a_cluster_a_second_request_is_the_first_again():
    """Slurm asks every process of a job, and the worker asks its stage."""
    script = (
        "import os\nfrom pipeline.study.execution.stopping import StopRequest\n"
        "r = StopRequest(); os.kill(os.getpid(), 15); os.kill(os.getpid(), 15); r.obey()"
    )
    job = os.environ | {IN_JOB: "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=study.REPOSITORY, env=job, timeout=60)
    assert done.returncode == STOPPED


def test_other_threads_leave_signals_alone():
    import threading

    found = []
    thread = threading.Thread(target=lambda: found.append(StopRequest()))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    found[0].close()
