"""prepare-data: a raw data set -> data/prepared/ (tensors, fixed splits, a card), its record."""

from __future__ import annotations

import click

from pipeline.data.prepare import prepare
from pipeline.files import file_sha256, read_json
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand
from pipeline.study.execution.inputs import Inputs
from pipeline.study.execution.runtime import stage_process
from pipeline.study.params.load import load_params
from pipeline.study.records.data import data_record
from pipeline.study.records.record import write_record


@click.command(cls=StageCommand, help=__doc__)
def main() -> None:
    params = load_params()
    inputs = Inputs(params, "prepare-data")
    with stage_process("prepare-data", "data"):
        prepare(params.file.data, paths.PREPARED)
        inputs.require_unchanged()
        record = data_record(read_json(paths.CARD), file_sha256(paths.CARD))
        write_record(paths.DATA_RECORD, record)


if __name__ == "__main__":
    main()
