"""Run the study in this folder and show what came of it: `dvc repro`, made readable.

One line per stage that ran, then one table, where to look, and what changed against the records in
git. OPTIONS go to `dvc repro` (a stage, --force, ...). In a terminal a bar shows the training.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic

import click

from pipeline.cli.lockfile import Project
from pipeline.cli.summary import changes, table, warnings

_BEGINS = re.compile(r"Running stage '([^']+)'")
_SKIPPED = re.compile(r"Stage '([^']+)' (didn't change|is cached)")
REPORT = Path("reports/tables")


def lines(said: Iterable[str], count: int, terminal: bool) -> Iterator[str]:
    """What to print while DVC says `said`; a text without newline is overwritten by the next."""
    done, skipped, running, began = 0, 0, "", monotonic()
    clear = "\r\x1b[K" if terminal else ""

    def stage() -> str:
        return f"{clear}[{done:>{len(str(count))}}/{count}] {running}"

    def finished() -> str:
        return f"{stage()}  {_time(monotonic() - began)}\n"

    for line in said:
        begins, skips = _BEGINS.match(line), _SKIPPED.match(line)
        if not begins and not skips:
            continue
        if running:
            yield finished()
            running = ""
        done += 1
        if begins:
            running, began = begins.group(1), monotonic()
            if terminal:
                yield f"{stage()} ..."
        else:
            skipped += 1
    if running:
        yield finished()
    if skipped:
        yield f"{skipped} of {count} stages were up to date.\n"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def run_dvc(arguments: Iterable[str], count: int) -> int:
    """Run `dvc repro`, showing one line per stage; returns its exit code."""
    terminal = sys.stderr.isatty()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quiet = {"PATH": programs, "PYTHONUNBUFFERED": "1", "ESPALIER_LOG": "WARNING"}
    command = [sys.executable, "-m", "dvc", "repro", *arguments]
    with subprocess.Popen(
        command, env=os.environ | quiet, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for text in lines(process.stdout, count, terminal):
            click.echo(text, nl=False, err=terminal)
    return process.returncode


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def repro(options: tuple[str, ...]) -> None:
    if not Path("dvc.yaml").is_file():
        raise click.UsageError("there is no dvc.yaml here: change into the folder of a study")
    code = run_dvc(options, len(Project(Path()).asked) + 1)  # and the report
    if code:
        click.echo("Stopped. What is finished stays; run it again to go on.", err=True)
        raise SystemExit(code)
    for warning in warnings(Path()):
        click.echo(f"warning: {warning}")
    click.echo(f"\n{table(REPORT / 'main.csv')}\n")
    click.echo(f"Compare the rows: {(REPORT / 'compare.html').absolute().as_uri()}")
    click.echo("Every run and its curves: make ui (or `espalier ui`), then http://127.0.0.1:5000")
    click.echo(changes(Path()))
