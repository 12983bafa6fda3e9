"""What a study of many trainings costs beside them: CPU seconds of `espalier run` per stage.

    python -m benchmarks.study.scale [--sizes 50,1000]

The trainings are fake: each writes the outputs of a small training at once, so that everything that
is measured is DVC, the driver and its display. Deps, params and outputs of a stage are those of
`train` in dvc.yaml. Each size is a git and DVC repository of its own in a temporary folder.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import redirect_stderr
from pathlib import Path

import click

from pipeline.runner.driver import Driver
from pipeline.runner.dvc_project import DvcProject
from pipeline.runner.task import Task
from pipeline.runner.view import RunView

PIPELINE = """\
stages:
  train:
    foreach: ${trainings}
    do:
      cmd: python -m stages.train
      params: [train, "trainings.${key}"]
      deps: [data/prepared, code/stages, code/training, code/units, code/models]
      outs: ["artifacts/train/${key}", "artifacts/events/${key}.jsonl"]
      metrics: [{"reports/records/${key}.json": {cache: false}}]
"""


class FakeEngine:
    """Every task ends at once, with outputs of a small training."""

    workers, resubmits = 1, False

    def submit(self, task: Task) -> Future[int]:
        """Write the outputs of a training."""
        key = task.name.partition("@")[2]
        for name, size in (
            (f"artifacts/train/{key}/final/model.safetensors", 20_000),
            (f"artifacts/train/{key}/spec.json", 500),
            (f"artifacts/events/{key}.jsonl", 5_000),
            (f"reports/records/{key}.json", 4_000),
        ):
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(key) + "x" * size)
        future: Future[int] = Future()
        future.set_result(0)
        return future

    def stop(self) -> None:
        """Nothing runs."""

    def kill(self) -> None:
        """Nothing runs."""


def make(count: int) -> None:
    """A study of `count` trainings in the working folder."""
    trainings = {f"t{n:04}": {"method": "dense", "seed": n} for n in range(count)}
    Path("params.yaml").write_text(json.dumps({"train": {"epochs": 2}, "trainings": trainings}))
    Path("dvc.yaml").write_text(PIPELINE)
    for folder, files in (("data/prepared", 3), ("code/stages", 8), ("code/training", 30),
                          ("code/units", 12), ("code/models", 10)):  # fmt: skip
        Path(folder).mkdir(parents=True)
        for n in range(files):
            Path(folder, f"{n}.py").write_text(f"# {folder} {n}\n" * 100)
    for command in (("git", "init", "-q"), ("dvc", "init", "-q")):
        _call(*command)


def cost(count: int) -> dict[str, float]:
    """CPU seconds of the parts of a first and a second run, and what is left on disk."""
    make(count)
    found: dict[str, float] = {"stages": count}
    for name in ("first", "second"):
        began = time.process_time()
        project = DvcProject()
        tasks = project.tasks()
        opened = time.process_time()
        driver = Driver(project, FakeEngine(), RunView(count, False), lambda _: 1.0)
        driver.run(tasks)
        found[f"open {name}"] = opened - began
        found[f"{name} per stage"] = (time.process_time() - opened) / count
    began = os.times()
    _call("dvc", "status", "-q", check=False)
    ended = os.times()
    found["dvc status"] = ended.children_user - began.children_user
    found["lock bytes per stage"] = Path("dvc.lock").stat().st_size / count
    return found


def _call(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@click.command(help=__doc__)
@click.option("--sizes", default="50,1000")
def main(sizes: str) -> None:
    rows: list[dict[str, float]] = []
    for size in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            os.chdir(folder)
            rows.append(cost(size))
            os.chdir("/")
        show(rows)


def show(rows: Sequence[dict[str, float]]) -> None:
    """Print the rows side by side."""
    for name in rows[-1]:
        click.echo(f"{name:22}" + "".join(f"{row[name]:12.4g}" for row in rows))


if __name__ == "__main__":
    main()
