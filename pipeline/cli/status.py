"""Show the progress of `espalier run` in a study folder and the parts of the study: running tasks,
epochs, failures."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pipeline.runner.view import STATUS, read_status
from pipeline.study.execution.report_state import folders


@click.command(help=__doc__)
@click.argument("study", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
def status(study: Path) -> None:
    os.chdir(study)
    try:
        ran = [folder for folder in folders() if (folder / STATUS).is_file()]
        for folder in ran or [Path()]:
            if folder.name:
                click.echo(f"{folder}:")
            click.echo(read_status(folder / STATUS))
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
