"""The driver: order, failures, budgets, interrupts; with an engine whose tasks take no time."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path

import pytest

from pipeline.runner import driver
from pipeline.runner.driver import Driver, urgencies
from pipeline.runner.task import NEVER_BEGAN, NotAStageError, Outcome, Task, task_of

CODES = {"fail": 1, "asked": 143, "term": -15}


def task(name: str, *after: str) -> Task:
    return Task(name, name.partition("@")[0], (), frozenset(after))


class Engine:
    """Ends every task at once, with the exit code its name asks for."""

    resubmits = False

    def __init__(self, workers: int = 2) -> None:
        self.workers, self.ran, self.asked, self.killed = workers, [], 0, 0
        self.held: list[tuple[Future, Task]] = []
        self.hold = False
        self.most = 0

    def submit(self, task: Task) -> Future[int]:
        self.ran.append(task.name)
        future: Future[int] = Future()
        if self.hold:
            self.held.append((future, task))
        else:
            future.set_result(CODES.get(task.module, 0))
        return future

    def stop(self) -> None:
        self.asked += 1
        for future, _ in self.held:
            future.set_result(143)
        self.held = []

    def kill(self) -> None:
        self.killed += 1


class Project:
    def __init__(self, unchanged=(), restored=(), broken=()) -> None:
        self.unchanged, self.restored, self.broken = unchanged, restored, broken
        self.accepted, self.flushed = [], 0

    def begin(self, name: str) -> Outcome | None:
        if name in self.unchanged:
            return Outcome.UNCHANGED
        return Outcome.RESTORED if name in self.restored else None

    def done(self, name: str) -> None:
        if name in self.broken:
            raise RuntimeError(f"{name}: params.yaml changed while it ran")
        self.accepted.append(name)

    def flush(self) -> None:
        self.flushed += 1


class View:
    def __init__(self, interrupt_at: int = -1) -> None:
        self.ticks, self.interrupt_at, self.said = 0, interrupt_at, []

    def started(self, task: Task) -> None: ...

    def resubmitted(self, task: Task) -> None:
        self.said.append((task.name, "resubmitted", ""))

    def ended(self, task: Task, outcome: Outcome, why: str = "") -> None:
        self.said.append((task.name, outcome, why))

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.interrupt_at:
            raise KeyboardInterrupt


STUDY = {
    t.name: t
    for t in (
        task("data"),
        task("train@short", "data"),
        task("train@long", "data"),
        task("prune@short", "train@short"),
        task("prune@long", "train@long"),
        task("report", "prune@short", "prune@long"),
    )
}


def cost(task: Task) -> float:
    return 9.0 if task.name == "train@long" else 1.0


def drive(tasks, engine=None, project=None, view=None, **settings):
    engine, project = engine or Engine(), project or Project()
    made = Driver(project, engine, view or View(), cost, **settings)
    return made.run(tasks), engine, project


def test_dependencies_first_then_the_longest_path():
    outcomes, engine, project = drive(STUDY, Engine(workers=1))
    order = ["data", "train@long", "train@short", "prune@long", "prune@short", "report"]
    assert engine.ran == order
    assert set(outcomes.values()) == {Outcome.DONE}
    assert project.accepted == engine.ran
    assert project.flushed >= 1


def test_urgency_is_the_costliest_way_to_the_end():
    assert urgencies(STUDY, cost)["train@long"] == 11.0
    assert urgencies(STUDY, cost)["data"] == 12.0


def test_what_is_up_to_date_or_restored_runs_nothing():
    project = Project(unchanged=("data", "train@long"), restored=("train@short",))
    outcomes, engine, _ = drive(STUDY, project=project)
    assert sorted(engine.ran) == ["prune@long", "prune@short", "report"]
    assert outcomes["train@short"] is Outcome.RESTORED


def test_a_failure_skips_its_dependents_and_nothing_else():
    tasks = {**STUDY, "fail@x": task("fail@x", "data"), "prune@x": task("prune@x", "fail@x")}
    tasks["report"] = task("report", "prune@short", "prune@x")
    view = View()
    outcomes, _, project = drive(tasks, view=view)
    assert outcomes["fail@x"] is Outcome.FAILED
    assert outcomes["prune@x"] is outcomes["report"] is Outcome.SKIPPED
    assert outcomes["prune@long"] is Outcome.DONE
    assert "fail@x" not in project.accepted
    assert ("report", Outcome.SKIPPED, "needs prune@x") in view.said


def test_a_result_that_cannot_be_accepted_is_a_failure():
    outcomes, _, _ = drive(STUDY, project=Project(broken=("train@short",)))
    assert outcomes["train@short"] is Outcome.FAILED
    assert outcomes["report"] is Outcome.SKIPPED
    assert outcomes["prune@long"] is Outcome.DONE


def test_writing_the_lock_takes_a_small_part_of_a_long_run(monkeypatch):
    """It is written as a whole: every 15 seconds it would be most of a run of 1,000 trainings."""
    now = [0.0]
    monkeypatch.setattr(driver, "monotonic", lambda: now[0])

    class Slow(Project):
        def done(self, name: str) -> None:
            now[0] += 10.0

        def flush(self) -> None:
            super().flush()
            now[0] += 8.0

    tasks = {f"train@{n}": task(f"train@{n}") for n in range(200)}
    _, _, project = drive(tasks, Engine(workers=1), Slow())
    assert 8.0 * (project.flushed - 2) < 0.06 * now[0]  # the first and the last always


@pytest.mark.parametrize("how", ["asked", "term"])
def test_a_stage_that_was_stopped_is_no_failure(how):
    tasks = {how: task(how), "next": task("next", how)}
    outcomes, _, _ = drive(tasks)
    assert outcomes == {how: Outcome.STOPPED, "next": Outcome.STOPPED}


def test_after_the_deadline_nothing_starts_and_running_tasks_are_asked_to_stop():
    engine = Engine()
    engine.hold = True
    outcomes, engine, _ = drive(STUDY, engine, deadline=0.0)
    assert engine.ran == ["data"]
    assert engine.asked == 1
    assert set(outcomes.values()) == {Outcome.STOPPED}


def test_the_first_interrupt_asks_and_the_results_stay():
    engine, view = Engine(workers=1), View(interrupt_at=2)
    outcomes, engine, project = drive(STUDY, engine, view=view)
    assert engine.asked == 1
    assert project.accepted == engine.ran == ["data", "train@long"]
    assert outcomes["train@short"] is Outcome.STOPPED


class Cluster(Engine):
    """Ends a task by the next of its codes; a code with a checkpoint advances it."""

    resubmits = True

    def __init__(self, *codes: tuple[int, bool]) -> None:
        super().__init__(1)
        self.codes = iter(codes)

    def submit(self, task: Task) -> Future[int]:
        self.ran.append(task.name)
        code, advances = next(self.codes)
        if advances:
            file = Path(".checkpoints/train/a") / f"{len(self.ran)}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            os.utime(file, ns=(len(self.ran), len(self.ran)))
        future: Future[int] = Future()
        future.set_result(code)
        return future


LOST, AT_A_CHECKPOINT = (-9, False), (143, True)


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [
        ([LOST, LOST, (0, False)], Outcome.DONE),
        ([LOST, LOST, LOST], Outcome.FAILED),
        ([LOST, LOST, AT_A_CHECKPOINT, LOST, LOST, (0, False)], Outcome.DONE),
        ([AT_A_CHECKPOINT] * 9 + [(0, False)], Outcome.DONE),
        ([(NEVER_BEGAN, False)] * 9 + [LOST, LOST, (0, False)], Outcome.DONE),
        ([AT_A_CHECKPOINT, (1, False)], Outcome.FAILED),
    ],
)
def test_a_cluster_starts_again_what_was_stopped_while_its_checkpoint_advances(
    tmp_path, monkeypatch, codes, outcome
):
    monkeypatch.chdir(tmp_path)
    tasks = {"train@a": task("train@a"), "prune@a": task("prune@a", "train@a")}
    view = View()
    more = [(0, False)] if outcome is Outcome.DONE else []
    outcomes, engine, _ = drive(tasks, Cluster(*codes, *more), view=view)
    assert outcomes["train@a"] is outcome
    assert engine.ran.count("train@a") == len(codes)
    assert outcomes["prune@a"] is (Outcome.DONE if more else Outcome.SKIPPED)
    assert view.said.count(("train@a", "resubmitted", "")) == len(codes) - 1


@pytest.mark.parametrize("command", ["make data", "python -m other.thing", "python -m"])
def test_another_command_is_refused_by_name(command):
    with pytest.raises(NotAStageError, match="dvc.yaml: x: .* use `dvc repro`"):
        task_of("x", command, frozenset())


def test_a_command_becomes_a_task():
    made = task_of("train@a", "python -m stages.train --training 'a b'", frozenset({"data"}))
    assert made == Task("train@a", "stages.train", ("--training", "a b"), frozenset({"data"}))
