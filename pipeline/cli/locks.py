"""Show which results are stale, and why; `--accept` accepts code changes that alter no result.

A stage is stale if its code, params or data differ from those in dvc.lock, so that the next `dvc
repro` would run it. After an edit that changes no number, rerun enough to prove it (the default
study) and compare the records. `espalier locks --accept` then writes the current hashes of the code
into dvc.lock and runs nothing. It refuses if params or data differ. Without STUDY: the default
study and all of studies/ that have a dvc.lock. The exit code is 1 if something is stale.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.lockfile import Project
from pipeline.cli.study import SOURCE, studies


def locked(source: Path = SOURCE) -> list[Path]:
    """The folders of the repository that have a dvc.lock."""
    return [folder for folder in (source, *studies(source)) if (folder / "dvc.lock").is_file()]


def report(folder: Path, accept: bool) -> bool:
    """Print what is stale in one study, and accept it if requested and possible. Returns whether
    nothing is stale afterwards."""
    project = Project(folder)
    stale = project.stale()
    if not stale:
        click.echo(f"{folder}: fresh, {len(project.asked)} stages")
        return True
    for stage in stale:
        click.echo(f"{folder}: {stage}")
    refused = [stage for stage in stale if stage.other]
    if not accept or refused:
        why = f", {len(refused)} by params or data: `dvc repro` must run them" if refused else ""
        click.echo(f"{folder}: {len(stale)} of {len(project.asked)} stages are stale{why}")
        return False
    project.accept()
    click.echo(f"{folder}: {len(stale)} stages accepted")
    return True


@click.command(help=__doc__)
@click.argument("studies", nargs=-1, metavar="[STUDY]...", type=click.Path(path_type=Path))
@click.option("--accept", is_flag=True, help="write the hashes of today's code into dvc.lock")
def locks(studies: tuple[Path, ...], accept: bool) -> None:
    for folder in studies:
        if not (folder / "dvc.lock").is_file():
            raise click.UsageError(f"{folder / 'dvc.lock'} is missing: nothing was run there")
    fresh = [report(folder, accept) for folder in studies or locked()]
    if not all(fresh):
        raise SystemExit(1)
