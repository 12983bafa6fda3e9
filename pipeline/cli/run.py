"""Run what is stale in a study, as `dvc repro` would, on all cores or GPUs of this machine or, with
`--engine slurm`, in jobs of a cluster (`compute.cluster` of params.yaml).

A study in parts (`parts` of params.yaml) runs one part after the other, then its own report.
Every result is committed to DVC, so `dvc repro` finds nothing to do afterwards. To continue a run
that was interrupted, killed or out of time, run the same command again.

Exit codes: 0 everything is up to date; 1 a stage failed (its dependents were skipped); 75 the
budget was used up; 130 interrupted.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, chdir
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.summary import changes, table, warnings
from pipeline.runner.driver import Driver, Engine
from pipeline.runner.local import LocalEngine, usable_workers
from pipeline.runner.task import Outcome, Project, Task
from pipeline.runner.view import RunView
from pipeline.study.execution import report_state
from pipeline.study.execution.busy import only_one

if TYPE_CHECKING:  # imports torch, which a run that has nothing to do does not need
    from pipeline.study.params.load import Params

LEFT_OVER = 75  # EX_TEMPFAIL of sysexits.h: run again
INTERRUPTED = 130
MAIN_TABLE = Path("reports/tables/main.csv")


class Workers(click.ParamType[int | None]):
    """A number of workers, at least 1, or "auto"."""

    name = "N|auto"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """None stands for "auto"."""
        if value == "auto":
            return None
        if not value.isdigit() or int(value) < 1:
            self.fail(f"{value!r}: give a number from 1 on, or auto", param, ctx)
        return int(value)


@click.command(help=__doc__)
@click.argument("study", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--workers", type=Workers(), default="auto", show_default=True,
              help="tasks at once; auto: by GPUs, or by cores and compute.threads; "
              "on a cluster compute.cluster.jobs")  # fmt: skip
@click.option("--engine", type=click.Choice(["local", "slurm"]), default="local",
              show_default=True, help="this machine, or jobs of Slurm")  # fmt: skip
@click.option("--only", metavar="GLOB", help="these stages and what they need, e.g. "
              "'train@*hspg*'; not those of parts")  # fmt: skip
@click.option("--single", is_flag=True, help="with --only: these stages, not what they need")
@click.option("--budget-minutes", type=click.FloatRange(min=0), help="stop after so long")
@click.option("--grace-minutes", type=click.FloatRange(min=0), default=2.0, show_default=True,
              help="how long a training may take to reach its next checkpoint")  # fmt: skip
def run(
    study: Path, workers: int | None, engine: str, only: str | None, single: bool, **limits: Any
) -> None:
    os.chdir(study)
    if only is None and (stages := unchanged_stages()):
        click.echo(f"all {stages} stages were up to date", err=True)
        click.echo(ending(Path()))
        return
    from pipeline.study.params.load import load_params, load_parts

    minutes, grace = limits["budget_minutes"], 60.0 * limits["grace_minutes"]
    deadline = None if minutes is None else monotonic() + 60.0 * minutes

    def outcomes_of(params: Params, unless: str = "") -> dict[str, Outcome]:
        project = open_project(params)
        tasks = {n: t for n, t in chosen(project.tasks(), only, single).items() if n != unless}
        return execute(
            params, project, tasks, made_engine(params, workers, engine), deadline, grace
        )

    params = load_params()
    timed = minutes is not None
    if only is None and (code := exit_code(run_parts(load_parts(params), outcomes_of), timed)):
        sys.exit(code)
    if only is None and params.file.parts:
        click.echo("the whole:", err=True)
    outcomes = outcomes_of(params)
    if outcomes.get("report") in (Outcome.DONE, Outcome.RESTORED, Outcome.UNCHANGED):
        click.echo(ending(Path()))
    sys.exit(exit_code(outcomes, timed))


def run_parts(
    folders: Mapping[Path, Params], outcomes_of: Callable[..., dict[str, Outcome]]
) -> dict[str, Outcome]:
    """Run the parts of a study without their reports: that of the whole covers them. A part that
    fails keeps no other from running; one that is stopped ends the run."""
    ended: dict[str, Outcome] = {}
    for folder, part in folders.items():
        if folder == Path():
            continue
        click.echo(f"{folder}:", err=True)
        with chdir(folder):
            outcomes = outcomes_of(part, unless="report")
        ended |= {f"{folder}/{name}": outcome for name, outcome in outcomes.items()}
        if Outcome.STOPPED in outcomes.values():
            break
    return ended


def unchanged_stages() -> int:
    """How many stages the study has, if all are unchanged and the last report is current: it read
    these params, so they are valid. 0: something may have to run."""
    if not Path(".dvc").is_dir() or not report_state.is_current():
        return 0
    from pipeline.runner.dvc_project import DvcProject

    count = 1
    for folder in report_state.folders():
        with chdir(folder):
            project = DvcProject()
            stages = [name for name in project.tasks() if name != "report"]
            if not project.unchanged(stages):
                return 0
            count += len(stages)
    return count


def execute(
    params: Params,
    project: Project,
    tasks: Mapping[str, Task],
    place: AbstractContextManager[Engine],
    deadline: float | None = None,
    grace: float = 120.0,
) -> dict[str, Outcome]:
    """Run `tasks` on an engine until a `time.monotonic`, with progress on stderr. `grace`: seconds
    that a task then has to reach its next checkpoint.

    Raises:
        BusyError: another run is at work in this study.
    """
    from pipeline.runner.costs import cost_of

    view = RunView(len(tasks))
    with only_one("espalier run"), place as engine:
        driver = Driver(project, engine, view, cost_of(params), deadline, grace)
        outcomes = driver.run(tasks)
    view.close()
    return outcomes


def made_engine(params: Params, workers: int | None, name: str) -> AbstractContextManager[Engine]:
    """The engine `name`, not yet entered.

    Raises:
        click.UsageError: it needs packages that are not installed.
    """
    compute = params.file.compute
    if name == "local":
        usable, gpus = usable_workers(compute.threads)
        return LocalEngine(workers or usable, gpus, compute.threads)
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise click.UsageError(
            "--engine slurm needs dask-jobqueue: pip install 'espalier[cluster]'"
        )
    from pipeline.runner.slurm import SlurmEngine

    return SlurmEngine(compute.cluster, workers, compute.threads)


def ending(folder: Path) -> str:
    """The summary: warnings, one table, where to look, what changed against git."""
    page = folder / MAIN_TABLE.with_name("compare.html")
    return "\n".join(
        [
            *(f"warning: {text}" for text in warnings(folder)),
            f"\n{table(folder / MAIN_TABLE)}\n",
            f"Compare the rows: {page.absolute().as_uri()}",
            "Every run and its curves: make ui (or `espalier ui`), then http://127.0.0.1:5000",
            changes(folder),
        ]
    )


def open_project(params: Params) -> Project:
    """The DVC project of the working folder or, without DVC, a bundle's."""
    if not any((folder / ".dvc").is_dir() for folder in (Path.cwd(), Path(params.file.root))):
        from pipeline.runner.plain_project import PlainProject

        return PlainProject(params)
    from pipeline.runner.dvc_project import DvcProject

    return DvcProject()


def chosen(
    tasks: Mapping[str, Task], pattern: str | None = None, single: bool = False
) -> dict[str, Task]:
    """The tasks that match `pattern` and, unless `single`, all tasks that they need.

    Raises:
        click.UsageError: no task matches; lists a few names.
    """
    if pattern is None:
        return dict(tasks)
    todo = fnmatch.filter(tasks, pattern)
    if not todo:
        some = ", ".join(list(tasks)[:5])
        raise click.UsageError(f"--only {pattern!r} matches no stage; there are {some}, ...")
    found: dict[str, Task] = {}
    while todo:
        task = tasks[todo.pop()]
        found[task.name] = task
        if single:
            continue
        todo += [name for name in task.after if name in tasks and name not in found]
    return found


def exit_code(outcomes: Mapping[str, Outcome], timed: bool) -> int:
    """See the module docstring."""
    ended = set(outcomes.values())
    if Outcome.FAILED in ended:
        return 1
    if Outcome.STOPPED in ended:
        return LEFT_OVER if timed else INTERRUPTED
    return 0
