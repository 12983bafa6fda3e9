"""A study in slices: train what is missing, longest first, until the time is up.

    espalier campaign --budget-minutes 25

Every training goes through its ordinary stage (`dvc repro train@<training>`), so a slice leaves
nothing that a plain `dvc repro` would not. At the end of the budget the running one is asked to
stop; it does at its next checkpoint, and the next slice resumes it there. Where DVC is absent
(`--runner plain`, e.g. inside a bundle) the stage is run directly and DVC accepts the result later.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

import click

from pipeline import registry
from pipeline.data.prepared import load_prepared
from pipeline.measure.count import count
from pipeline.study import paths
from pipeline.study.execution.runtime import log
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.artifacts import NetworkSpec

Runner = Literal["dvc", "plain"]
Outcome = Literal["done", "stopped", "failed"]
LEFT_OVER = 75  # exit code: the budget ended first, run again (EX_TEMPFAIL of sysexits.h)
_PATIENCE_S = 20.0  # between asking a process that does not listen and killing it


@dataclass(frozen=True)
class Clock:
    """When to ask for a stop, and when to stop asking, in seconds of `time.monotonic`."""

    end: float
    grace: float

    @classmethod
    def minutes(cls, budget: float | None, grace: float) -> Clock:
        """A budget that begins now; None: no end."""
        return cls(float("inf") if budget is None else monotonic() + 60.0 * budget, 60.0 * grace)

    @property
    def left(self) -> float | None:
        """Seconds left, None without an end."""
        return None if self.end == float("inf") else max(0.0, self.end - monotonic())


def missing(params: Params, runner: Runner) -> list[str]:
    """Trainings that a `dvc repro` would run or restore; without DVC: those without a record."""
    keys = list(params.file.trainings)
    if runner == "plain":
        done = [k for k in keys if paths.record("train", k).exists() and _whole(k)]
        return [k for k in keys if k not in done]
    said = subprocess.run(
        [*_dvc(), "status", "--json", *(f"train@{k}" for k in keys)],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        raise RuntimeError(f"dvc status failed: {said.stderr.strip()[-2000:]}")
    changed = json.loads(said.stdout)
    return [k for k in keys if f"train@{k}" in changed]


def longest_first(params: Params, keys: Sequence[str]) -> list[str]:
    """By epochs x MACs of the dense network: what does not fit at the end is then short."""
    info = load_prepared(paths.PREPARED).info

    def cost(key: str) -> float:
        training, recipe = params.training(key), params.recipe(key)
        network = NetworkSpec.of(training.model, info)
        method = registry.method_spec(training.method).build(params.method_config(key))
        epochs = sum(phase.epochs for phase in method.phases(recipe))
        return float(epochs * count(network.build(), network.example()).macs)

    return sorted(keys, key=cost, reverse=True)


def execute(command: Sequence[str], clock: Clock) -> Outcome:
    """Run a command; when the time is up, ask the stage it runs to stop at a checkpoint."""
    process = subprocess.Popen(command, env=_environment())
    try:
        code = process.wait(clock.left)
    except subprocess.TimeoutExpired:
        _stop(process, clock)
        return "stopped"
    except BaseException:
        _stop(process, clock)
        raise
    return "done" if code == 0 else "failed"


def _stop(process: subprocess.Popen[bytes], clock: Clock) -> None:
    """Ask the stage, which lets DVC end in good order; then the process itself; then no more."""
    for ask, patience in ((_ask_stage, clock.grace), (_ask_stage, _PATIENCE_S),
                          (process.terminate, _PATIENCE_S), (process.kill, None)):  # fmt: skip
        ask()
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            log.warning("still running after %.0f s", patience)


def _ask_stage() -> None:
    for lock in Path(".checkpoints").glob("*.lock"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:  # held: its process is alive and wrote its pid
                os.kill(int(file.read()), signal.SIGTERM)


def run(params: Params, runner: Runner, clock: Clock) -> tuple[list[str], list[str]]:
    """Run the slice; returns the trainings that failed and those still to be done."""
    if runner == "dvc":
        execute([*_dvc(), "repro", "prepare-data"], clock)
    queue, failed = longest_first(params, missing(params, runner)), []
    log.info("%d trainings to do: %s", len(queue), ", ".join(queue) or "none")
    while queue and clock.left != 0.0:
        key = queue[0]
        command = [sys.executable, "-m", "stages.train", "--training", key]
        if runner == "dvc":
            command = [*_dvc(), "repro", f"train@{key}"]
        outcome = execute(command, clock)
        log.info("%s: %s", key, outcome)
        if outcome == "stopped":
            break
        failed += [key] if outcome == "failed" else []
        queue.pop(0)
    if runner == "dvc" and not queue and not failed and clock.left != 0.0:
        log.info("trainings are done: prunings, sweeps and the report follow")
        failed += ["dvc repro"] if execute([*_dvc(), "repro"], clock) == "failed" else []
    return failed, queue


def _whole(key: str) -> bool:
    return (paths.training(key) / "final/model.safetensors").exists()


def _dvc() -> list[str]:
    return [sys.executable, "-m", "dvc"]


def _environment() -> dict[str, str]:
    """DVC does not put its own environment first."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": programs}


@click.command(help=__doc__)
@click.option("--budget-minutes", type=float, help="no more than so long; default: no end")
@click.option("--grace-minutes", type=float, default=2.0, show_default=True,
              help="how long a training may take to reach its next checkpoint")  # fmt: skip
@click.option("--runner", type=click.Choice(["dvc", "plain"]), help="default: dvc where .dvc is")
def campaign(budget_minutes: float | None, grace_minutes: float, runner: Runner | None) -> None:
    import logging

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    params = load_params()
    if runner is None:
        root = Path(params.file.root)
        runner = "dvc" if (root / ".dvc").is_dir() else "plain"
    failed, left = run(params, runner, Clock.minutes(budget_minutes, grace_minutes))
    if failed:
        log.error("failed: %s", ", ".join(failed))
        raise SystemExit(1)
    if left:
        log.info("the time is up; still to do: %s", ", ".join(left))
        raise SystemExit(LEFT_OVER)
