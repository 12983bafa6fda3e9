"""An attempt at a task in a cluster's job runs once, whatever dask makes of a lost result."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from signal import SIGKILL, SIGTERM

import pytest

from pipeline.runner import cluster_worker, slurm
from pipeline.runner.cluster_worker import run_here
from pipeline.runner.task import Task
from pipeline.study.params.schema import ClusterParams

TASK = Task("train@a", "none", ())


class Engine:
    """Ends every task with exit code 143, and counts them."""

    def __init__(self) -> None:
        self.ran = 0

    def submit(self, task: Task) -> Future[int]:
        self.ran += 1
        ended: Future[int] = Future()
        ended.set_result(143)
        return ended


@pytest.fixture
def engine(tmp_path, monkeypatch) -> Engine:
    monkeypatch.chdir(tmp_path)
    made = Engine()
    monkeypatch.setattr(cluster_worker, "_engine", made)
    return made


def test_a_lost_result_is_read_not_computed_again(engine):
    assert [run_here(TASK, 5), run_here(TASK, 5)] == [143, 143]
    assert engine.ran == 1


def test_the_next_attempt_runs_and_an_earlier_one_does_not_come_back(engine):
    run_here(TASK, 5)
    assert run_here(TASK, 6) == 143
    assert run_here(TASK, 5) == -SIGTERM
    assert engine.ran == 2


def test_a_run_from_a_node_whose_clock_is_behind(engine):
    run_here(TASK, 6)
    cluster_worker.forget(TASK.name)
    assert run_here(TASK, 5) == 143
    assert engine.ran == 2


def test_an_attempt_whose_job_ended_in_the_middle_is_lost(engine):
    assert cluster_worker.claim(TASK.name, 5) is not None
    assert run_here(TASK, 5) == -SIGTERM
    assert engine.ran == 0


def test_tasks_do_not_share_attempts(engine):
    run_here(TASK, 5)
    run_here(Task("train@a.7", "none", ()), 4)
    assert engine.ran == 2


def test_files_that_a_network_file_system_keeps_are_no_attempts(engine):
    run_here(TASK, 5)
    (cluster_worker.BEGUN / TASK.name / ".nfs000000000001").touch()
    assert run_here(TASK, 6) == 143


def test_an_error_of_a_worker_is_a_lost_attempt(engine, monkeypatch):
    pytest.importorskip("distributed")

    def full(task: Task, attempt: int) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(slurm, "run_here", full)
    driver = slurm.SlurmEngine(ClusterParams(), 1)
    with ThreadPoolExecutor(1) as driver._executor:
        assert driver.submit(TASK).result(60) == -SIGKILL
