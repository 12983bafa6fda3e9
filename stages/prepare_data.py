"""prepare-data: a raw data set -> data/prepared/ (plain tensors, fixed splits, a card)."""

from __future__ import annotations

import click

from pipeline.data.prepare import prepare
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand
from pipeline.study.execution.runtime import stage_process
from pipeline.study.params.load import load_params


@click.command(cls=StageCommand, help=__doc__)
def main() -> None:
    params = load_params()
    with stage_process("prepare-data", "data"):
        prepare(params.file.data, paths.PREPARED)


if __name__ == "__main__":
    main()
