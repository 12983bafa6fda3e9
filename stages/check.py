"""check: refuse a params.yaml that cannot run. The first stage of every run.

Otherwise DVC would first delete the results of the stage that an edit changed, or report a missing
file or parameter in its own words.
"""

from __future__ import annotations

import click

from pipeline.study.execution import checked
from pipeline.study.execution.commands import StageCommand


@click.command(cls=StageCommand, help=__doc__)
def main() -> None:
    if not checked.is_known():
        from pipeline.study.params.load import load_params  # imports torch

        before = checked.inputs()
        load_params()
        checked.save(before)
    checked.confirm()
    click.echo(checked.SAYS, err=True)


if __name__ == "__main__":
    main()
