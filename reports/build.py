"""Publish a study, then build its tables and figures from MLflow alone."""

from __future__ import annotations

from pathlib import Path

from pipeline.study.publish import Study, curves_for, publish, runs_for
from reports.figures import write_figures
from reports.render import write_tables
from reports.tables import Table, main_table, sweep_table


def build_report(study: Study, out: Path) -> list[Table]:
    """Write `out`/tables and `out`/plots; returns the tables (`str` shows one in a terminal).

    Raises:
        ValueError: a record is damaged or made from another training than the one present.
        RuntimeError: MLflow is not installed or does not answer.
    """
    publish(study)
    shas = {name: [view.sha for view in group] for name, group in study.views.items()}
    trained = [shas[f"train/{e.key}"][0] for e in study.trainings if f"train/{e.key}" in shas]
    pruned = [shas[f"evaluate/{e.key}"][0] for e in study.prunings if f"evaluate/{e.key}" in shas]
    swept = [s for e in study.sweeps for s in shas.get(f"sweep/{e.key}", ())[1:]]
    prunings, points = runs_for(study.name, pruned), runs_for(study.name, swept)
    tables = [main_table(prunings, study.prunings), sweep_table(points, study.sweeps)]
    write_tables(tables, out / "tables")
    write_figures(prunings, points, curves_for(study.name, trained), out / "plots")
    return tables
