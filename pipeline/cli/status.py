"""Show the progress of `espalier run` in a study folder: running tasks, epochs, failures."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pipeline.runner.view import read_status


@click.command(help=__doc__)
@click.argument("study", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
def status(study: Path) -> None:
    os.chdir(study)
    try:
        click.echo(read_status())
    except FileNotFoundError as error:
        raise click.UsageError(str(error)) from error
