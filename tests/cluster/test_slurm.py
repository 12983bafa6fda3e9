"""`--engine slurm` on a real Slurm: whatever happens to jobs, workers and nodes, a run ends by
itself with the record of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import psutil
import pytest

from pipeline.runner import slurm as engines
from pipeline.runner.driver import Driver
from pipeline.runner.local import log_of
from pipeline.runner.slurm import ClusterError, SlurmEngine
from pipeline.runner.task import Outcome, Task
from pipeline.study.params.schema import ClusterParams
from tests.cluster import fake_training
from tests.cluster.slurm import Slurm, needs_slurm, until

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 25
SETTINGS = ClusterParams(time="10", memory="500MB")

pytestmark = [
    pytest.mark.slow,
    needs_slurm,
    pytest.mark.filterwarnings("default"),
]


class Project:
    """Of fake tasks, none up to date."""

    def begin(self, name: str) -> Outcome | None:
        return None

    def done(self, name: str) -> None: ...
    def flush(self) -> None: ...


class View:
    """Remembers what was lost, and does `act` once when `when` comes true."""

    def __init__(self, when: Callable[[], bool], act: Callable[[], None]) -> None:
        self.lost: list[str] = []
        self.why: dict[str, str] = {}
        self.acted, self._when, self._act = False, when, act

    def started(self, task: Task) -> None: ...

    def ended(self, task: Task, outcome: Outcome, why: str = "") -> None:
        self.why[task.name] = why

    def resubmitted(self, task: Task) -> None:
        self.lost.append(task.name)

    def tick(self) -> None:
        if not self.acted and self._when():
            self.acted = True
            self._act()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Slurm]:
    """Two idle nodes; the environment is that of their clients, the folder an empty study."""
    here, before = Path.cwd(), dict(os.environ)
    made = Slurm(tmp_path_factory.mktemp("slurm"))
    work = tmp_path_factory.mktemp("study")
    try:
        made.start()
        os.environ |= made.environment | {"PYTHONPATH": str(ROOT)}
        dask.config.refresh()  # it reads the environment when it is imported
        os.chdir(work)
        yield made
    finally:
        made.close()
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def engine(cluster) -> Iterator[SlurmEngine]:
    """One for all tests: what each of them leaves is what the next one meets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "WORKER", "tests.cluster.light_worker")
        patch.setattr(engines, "LOST_AFTER_S", 0.5)
        with SlurmEngine(SETTINGS, 2, 1) as made:
            yield made
        until(lambda: not cluster.workers(), "every worker ends with the run")


def training(name: str, *more: str) -> Task:
    arguments = ("--name", name, "--epochs", str(EPOCHS), *more)
    return Task(f"train@{name}", "tests.cluster.fake_training", arguments)


def epoch_of(name: str) -> int:
    path = fake_training.checkpoint(name)
    return json.loads(path.read_text())[0] if path.exists() else 0


def job_of(name: str) -> str:
    return fake_training.checkpoint(name).with_name("job").read_text()


def node_of(cluster: Slurm, name: str) -> str:
    return cluster.call("squeue", "-h", "-j", job_of(name), "-o", "%N").strip()


def drive(engine, tasks, view) -> dict[str, Outcome]:
    return Driver(Project(), engine, view, lambda _: 1.0).run({t.name: t for t in tasks})


def scancel(cluster: Slurm, name: str) -> None:
    cluster.call("scancel", job_of(name))


def kill_the_worker(cluster: Slurm, name: str) -> None:
    """kill -9 of the process that is the job's worker."""
    (worker,) = cluster.workers(f"{job_of(name)}\0")
    os.kill(worker, signal.SIGKILL)


def node_down(cluster: Slurm, name: str) -> None:
    node = node_of(cluster, name)
    cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    threading.Timer(3, cluster.call, ("scontrol", "update", f"nodename={node}", "state=resume"))


def drain_and_cancel(cluster: Slurm, name: str) -> None:
    node = node_of(cluster, name)
    cluster.call("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    scancel(cluster, name)


def preempt(cluster: Slurm, name: str) -> None:
    node = node_of(cluster, name)
    cluster.call("sbatch", "-p", "high", "-w", node, "-n1", "-o", "/dev/null", "--wrap", "sleep 2")


def test_jobs_without_a_worker_end_the_run(cluster, monkeypatch):
    monkeypatch.setattr(engines, "WORKER", "no_such_module")
    monkeypatch.setattr(engines, "JOBS_IN_VAIN", 2)
    monkeypatch.setattr(engines, "LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(engines, "LOST_AFTER_S", 0.5)
    with (
        SlurmEngine(SETTINGS, 1) as engine,
        pytest.raises(ClusterError, match=r"2 jobs in a row .* see .checkpoints/logs/slurm"),
    ):
        engine.submit(training("nowhere")).result(60)


@pytest.mark.cluster
def test_a_job_at_its_time_limit_goes_on_in_the_next(cluster, monkeypatch):
    """Slurm looks at limits every 30 seconds: the job ends between 60 and 90."""
    monkeypatch.setattr(engines, "WORKER", "tests.cluster.light_worker")
    view = View(lambda: False, lambda: None)
    with SlurmEngine(SETTINGS.model_copy(update={"time": "1"}), 1, 1) as engine:
        outcomes = drive(engine, [training("limit", "--epochs", "1100")], view)
    assert outcomes == {"train@limit": Outcome.DONE}
    found = json.loads(fake_training.record("limit", 1100).read_text())
    assert found["digest"] == fake_training.digest_of(1100)
    said = log_of("train@limit").read_text()
    assert said.count("resumed at") == said.count("on node") - 1 >= 1


@pytest.mark.parametrize(
    "disturb", [scancel, kill_the_worker, preempt, node_down, drain_and_cancel]
)
def test_a_disturbed_run_ends_by_itself_with_the_undisturbed_record(engine, cluster, disturb):
    name = disturb.__name__
    view = View(lambda: epoch_of(name) >= 5, lambda: disturb(cluster, name))
    outcomes = drive(engine, [training(name), training(f"{name}-undisturbed")], view)
    cluster.call("scontrol", "update", "nodename=node[1-2]", "state=resume", check=False)
    assert set(outcomes.values()) == {Outcome.DONE}, view.why
    assert f"train@{name}" in view.lost  # the driver started it again, not dask
    said = log_of(f"train@{name}").read_text()
    assert "resumed at" in said
    if disturb in (scancel, preempt, drain_and_cancel):  # Slurm leaves the stage time
        assert "stops at" in said
    for each in (name, f"{name}-undisturbed"):
        found = json.loads(fake_training.record(each, EPOCHS).read_text())
        assert found == {"epochs": EPOCHS, "digest": fake_training.digest_of(EPOCHS)}


def test_scheduler_and_workers_listen_where_they_are_told(engine, cluster):
    """With `interface: lo` in dask-jobqueue's settings, as here, on loopback alone."""
    seen: set[str] = set()

    def look() -> None:
        for pid in (os.getpid(), *cluster.workers()):
            sockets = psutil.Process(pid).net_connections("inet")
            seen.update(s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN)

    drive(engine, [training("listening")], View(lambda: epoch_of("listening") >= 2, look))
    assert seen == {"127.0.0.1"}


def test_a_failure_is_not_repeated_and_skips_its_dependents(engine):
    bad = training("bad", "--fail-at", "1")
    view = View(lambda: False, lambda: None)
    outcomes = drive(engine, [bad, Task("prune@bad", "x", (), frozenset([bad.name]))], view)
    assert outcomes == {"train@bad": Outcome.FAILED, "prune@bad": Outcome.SKIPPED}
    assert view.why["train@bad"] == "exit code 3"
    assert view.lost == []


def test_a_first_interrupt_stops_at_a_checkpoint(engine):
    def interrupt() -> None:
        raise KeyboardInterrupt

    view = View(lambda: epoch_of("asked") >= 3, interrupt)
    outcomes = drive(engine, [training("asked")], view)
    assert outcomes == {"train@asked": Outcome.STOPPED}
    assert 3 <= epoch_of("asked") < EPOCHS


def test_slurm_refuses_a_job(cluster):
    with pytest.raises(ClusterError, match=r"params.yaml: compute.cluster: .*invalid partition"):
        SlurmEngine(ClusterParams(partition="nowhere")).__enter__()
