"""report: publish every record to MLflow, then make tables and figures from MLflow alone.

Does nothing if neither its inputs nor its results nor the database changed since the last report.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.study import paths
from pipeline.study.execution import report_state
from pipeline.study.execution.commands import StageCommand

if TYPE_CHECKING:  # torch, MLflow and matplotlib are imported where there is something to do
    from pipeline.study.params.load import Params
    from pipeline.study.tracking.study_runs import Entry, Study

OUT = Path("reports")


def asked(params: Params, training: str) -> dict[str, str]:
    """The table columns for a row that was not run."""
    entry = params.training(training)
    model = f"{entry.model.family}/{entry.model.name}"
    return {"model": model, "method": entry.method, "data": params.file.data.name}


def study(params: Params) -> Study:
    """All entries of params.yaml and of the parts of the study, run or not. Iterates over params,
    never over files."""
    from pipeline.study.params.load import load_parts
    from pipeline.study.tracking.study_runs import Study

    parts = [entries(folder, part) for folder, part in load_parts(params).items()]
    trainings, prunings, sweeps, pairs = (
        list(chain.from_iterable(kind)) for kind in zip(*parts, strict=True)
    )
    return Study(params.file.study, trainings, prunings, sweeps, pairs, paths.DATA_RECORD)


def entries(folder: Path, params: Params) -> tuple[list[Entry], ...]:
    """Trainings, prunings, sweeps and pairs of one folder of the study."""
    from pipeline.study.tracking.study_runs import Entry

    def entry(kind: str, key: str, training: str, stages: Iterable[str], **more: Any) -> Entry:
        events = tuple(folder / paths.events(stage, key) for stage in stages)
        columns = asked(params, training) | more.pop("columns", {})
        return Entry(key, training, folder / paths.record(kind, key), events, columns, **more)

    file = params.file
    prunings = [
        entry(
            "evaluate",
            key,
            p.training,
            ("finetune", "evaluate"),
            columns={"rule": p.target.rule, "target": f"{p.target.value:g}"},
            reference=p.reference,
        )
        for key, p in file.prunings.items()
    ]
    return (
        [entry("train", key, key, ["train"]) for key in file.trainings],
        prunings,
        [entry("sweep", key, key, ["sweep"]) for key in file.sweep.trainings],
        [
            entry("connect", key, pair.one.training, ["connect"])
            for key, pair in file.connect.pairs.items()
        ],
    )


def run(params: Params, out: Path) -> None:
    """Publish, then write `out`/tables and `out`/plots."""
    from pipeline.study.execution.runtime import log
    from pipeline.study.records.agreement import require_agreement
    from pipeline.study.records.artifacts import PrunedArtifact
    from pipeline.study.tracking.model_registry import deliver
    from pipeline.study.tracking.publish import naming_full_disk_of_store
    from reports.build.render import plain
    from reports.build.report import build_report

    require_agreement(params)
    asked_for = study(params)
    for table in build_report(asked_for, out):
        log.info("%s", plain(table))
    for key, artifact in delivered(params).items():
        view = asked_for.views.get(f"evaluate/{key}")
        if view is not None:
            with naming_full_disk_of_store():
                deliver(params.file.study, view[0], PrunedArtifact(artifact))


def delivered(params: Params) -> dict[str, Path]:
    """The artefacts of the prunings that `deliver` lists, here and in the parts of the study."""
    from pipeline.study.params.load import load_parts

    return {
        key: folder / paths.finetune(key)
        for folder, part in load_parts(params).items()
        for key in part.file.deliver
    }


def make() -> None:
    """The report of this folder."""
    from pipeline.data.prepared import require_same_images
    from pipeline.study.execution.inputs import Inputs
    from pipeline.study.execution.runtime import stage_process
    from pipeline.study.params.load import load_params

    before = report_state.inputs()
    params = load_params()
    inputs = Inputs(params, "report")
    with stage_process("report", "report"):
        require_same_images(paths.PREPARED)
        run(params, OUT)
        inputs.require_unchanged()
        report_state.save(before, params.file.study)


@click.command(cls=StageCommand, help=__doc__)
def main() -> None:
    if report_state.is_current():
        click.echo(f"{OUT}/ and MLflow are up to date", err=True)
    else:
        make()


if __name__ == "__main__":
    main()
