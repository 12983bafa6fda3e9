"""Publish a study, then build its tables and figures from MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.study.tracking.publish import naming_full_disk_of_store, publish
from pipeline.study.tracking.read_back import (
    curves_for,
    lines_for,
    runs_for,
    show_in_runs,
    sweeps_for,
)
from pipeline.study.tracking.study_runs import Study
from reports.build.candidates import candidates
from reports.build.connect import connect_table, write_lines
from reports.build.figures import write_figures
from reports.build.mask_distance import write_mask_distances
from reports.build.page import write_comparison
from reports.build.papers.comparison import claims_table, paper_table, tables_of
from reports.build.papers.figures import write_paper_figures
from reports.build.papers.published import load_papers
from reports.build.render import write_tables
from reports.build.style import Styles
from reports.build.table import Table, without_seed
from reports.build.tables import main_table, sweep_table, weights_table
from reports.build.weights import write_weights


def build_report(study: Study, out: Path) -> list[Table]:
    """Replace `out`/tables and `out`/plots; returns the tables. On any error both are as before.

    Raises:
        ValueError: a record is damaged, or was made from another training than the present one.
        RuntimeError: MLflow is not installed or does not answer.
    """
    new = out / "local" / ".new"
    shutil.rmtree(new, ignore_errors=True)  # of a killed report
    try:
        tables = _build(study, new)
        for page in sorted((new / "local").glob("*")):
            page.replace(out / "local" / page.name)
        for folder in ("tables", "plots"):  # DVC does not remove them
            shutil.rmtree(out / folder, ignore_errors=True)
            (new / folder).mkdir(exist_ok=True)  # nothing to draw
            (new / folder).rename(out / folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return tables


def _build(study: Study, out: Path) -> list[Table]:
    publish(study)
    shas = {name: [view.sha for view in group] for name, group in study.views.items()}
    trained = [shas[f"train/{e.key}"][0] for e in study.trainings if f"train/{e.key}" in shas]
    pruned = [shas[f"evaluate/{e.key}"][0] for e in study.prunings if f"evaluate/{e.key}" in shas]
    swept = [s for e in study.sweeps for s in shas.get(f"sweep/{e.key}", ())[1:]]
    prunings, points = runs_for(study.name, pruned), runs_for(study.name, swept)
    rows = candidates(prunings, points)
    methods = {e.key: e.asked.get("method", "") for e in study.trainings}
    styles = Styles(
        [(method, without_seed(name)) for name, method in methods.items()],
        [(c.method, c.styled_as) for c in rows],
    )
    tables = [main_table(prunings, study.prunings), sweep_table(points, study.sweeps)]
    curves = curves_for(study.name, trained)
    tops = {shas[name][0]: e.key for e in study.sweeps if (name := f"sweep/{e.key}") in shas}
    if study.sweeps:
        tables.append(weights_table(runs_for(study.name, list(tops)), study.sweeps))
        drawn = write_weights(sweeps_for(study.name, list(tops)), styles, out / "plots")
        with naming_full_disk_of_store():
            show_in_runs(study.name, {s: drawn[k] for s, k in tops.items() if k in drawn})
    if study.pairs:
        paired = [shas[f"connect/{e.key}"][0] for e in study.pairs if f"connect/{e.key}" in shas]
        tables.append(connect_table(runs_for(study.name, paired), study.pairs))
        write_lines(lines_for(study.name, paired), out / "plots")
    tables += write_comparison(study.name, prunings, points, styles, out)
    keys = [entry.key for entry in study.prunings]
    for paper in load_papers().values():
        tables += [paper_table(paper, t, prunings) for t in tables_of(paper, study.name, keys)]
        if (claims := claims_table(paper, prunings, study.name, keys)) is not None:
            tables.append(claims)
        write_paper_figures(paper, study.name, prunings, out / "plots")
    write_tables(tables, out / "tables")
    write_figures(prunings, points, curves, methods, styles, out / "plots")
    write_mask_distances(curves, out / "plots")
    return tables
