"""Tables: goldens from fixed records, grouping over seeds, rows that were not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.study.tracking.record_views import evaluate_view
from pipeline.study.tracking.study_runs import Entry
from reports.build.figures import line_of, sweep_data, write_figures
from reports.build.render import cells, csv, latex, markdown, plain, provenance, write_tables
from reports.build.style import Styles
from reports.build.table import NOT_RUN
from reports.build.tables import main_table, sweep_table, weights_table
from reports.build.weights import histogram_data, write_weights
from tests.reports.samples import (
    check_golden,
    eval_record,
    frame,
    frames,
    sweep_record,
    train_record,
    write_study,
)

NO_ROWS = Styles([], [])


@pytest.fixture
def tables(tmp_path):
    study = write_study(tmp_path)
    prunings, points = frames(study)
    swept = frame([study.views[f"sweep/{e.key}"][0] for e in study.sweeps])
    return (
        main_table(prunings, study.prunings),
        sweep_table(points, study.sweeps),
        weights_table(swept, study.sweeps),
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_goldens(tables, number):
    table = tables[number]
    for suffix, render in (("md", markdown), ("csv", csv), ("tex", latex)):
        check_golden(f"tables/{table.name}.{suffix}", render(table))


def test_provenance_golden(tables):
    check_golden("tables/provenance.json", provenance(tables))


def test_seeds_become_mean_and_sample_deviation(tables):
    row = tables[0].rows.set_index("pruning").loc["resnet8-hspg-s0-p50"]
    assert row["seeds"] == 2
    assert row["dense_top1"] == 97.5
    assert row["dense_top1_std"] == pytest.approx(0.5**0.5)


def _entries(tmp_path: Path, records) -> list[Entry]:
    path = tmp_path / "record.json"
    path.touch()
    return [Entry(r.pruning, r.training, path) for r in records]


@pytest.mark.parametrize(
    ("other", "rows"),
    [
        (train_record(seed=1), 1),
        (train_record(seed=1, lr=0.2), 2),
        (replace(train_record(seed=0), training="again"), 2),
    ],
    ids=["another seed", "another learning rate", "the same seed twice"],
)
def test_only_rows_that_differ_in_the_seed_alone_are_joined(tmp_path, other, rows):
    trainings = [train_record(), other]
    records = [eval_record(t) for t in trainings]
    views = [evaluate_view(r, t) for r, t in zip(records, trainings, strict=True)]
    assert len(main_table(frame(views), _entries(tmp_path, records)).rows) == rows


def test_another_target_is_another_row(tmp_path):
    training = train_record("dense")
    records = [eval_record(training, f) for f in (0.5, 0.7)]
    views = [evaluate_view(r, training) for r in records]
    table = main_table(frame(views), _entries(tmp_path, records))
    assert list(table.rows["target"]) == ["0.5", "0.7"]


def test_what_was_not_run_says_so(tables):
    text = cells(tables[0])[-1]
    assert text[:2] == ["resnet8-imp-s0", "resnet8"]
    assert text[
        tables[0].columns.index(next(c for c in tables[0].columns if "final" in c.key))
    ] == (NOT_RUN)


def test_an_empty_study_has_empty_tables(tmp_path):
    empty = frame([])
    table = main_table(empty, [])
    assert cells(table) == []
    assert cells(sweep_table(empty, [Entry("t", "t", tmp_path / "none")]))[0][2] == "t"
    assert "MACs" in markdown(table)


def test_in_a_terminal_columns_are_aligned(tables):
    head, *rows = plain(tables[0]).splitlines()[1:]
    at = head.index("method")
    assert {row[at - 1] for row in rows} == {" "}
    assert [row[at:].split()[0] for row in rows] == ["dense", "hspg", "imp"]


def test_in_a_terminal_numbers_stand_to_the_right(tables):
    head, *rows = plain(tables[0]).splitlines()[1:]
    end = head.index("seeds") + len("seeds")
    assert [row[:end].split()[-1] for row in rows] == ["1", "2", "0"]
    assert {row[end : end + 2] for row in rows} == {"  "}


def test_every_cell_is_traceable(tables):
    for table in tables:
        sources = json.loads(provenance([table]))[table.name]
        assert list(sources["columns"]) == sorted(c.header for c in table.columns)
        for row, text in zip(sources["rows"], cells(table), strict=True):
            cited = text[-1].split() if row["runs"] else []
            assert [r["record_sha"][:12] for r in row["runs"]] == cited


def test_files_are_written_twice_alike(tables, tmp_path):
    for folder in ("a", "b"):
        write_tables(tables, tmp_path / folder)
    names = {f"{t}.{s}" for t in ("main", "sweep", "weights") for s in ("md", "csv", "tex")}
    assert {p.name for p in (tmp_path / "a").iterdir()} == names | {"provenance.json"}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_figures_are_the_same_bytes_twice(tmp_path):
    import pandas as pd

    study = write_study(tmp_path)
    prunings, points = frames(study)
    curves = pd.DataFrame(
        [("t", e, 10 * e, "validation/top1", 80.0 + e) for e in range(3)],
        columns=["training", "epoch", "step", "metric", "value"],
    )
    for folder in ("a", "b"):
        write_figures(prunings, points, curves, {"t": "dense"}, NO_ROWS, tmp_path / folder)
    found = sorted(p.name for p in (tmp_path / "a").iterdir())
    names = ["accuracy_sparsity-channels", "accuracy_sparsity-weights", "curves"]
    pictures = [f"{n}.{s}" for n in names for s in ("png", "svg")]
    assert found == sorted([*pictures, "curves.csv", "sweep.csv"])
    for name in found:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a" / "curves.svg").read_bytes()


def test_sweep_data_are_fractions(tmp_path):
    data = sweep_data(frames(write_study(tmp_path))[1])
    assert list(data["ranked"]) == ["weights"] * 4 + ["channels"] * 4
    assert list(data["params_nonzero"]) == pytest.approx(2 * [0.5, 0.5, 0.1, 0.1])
    assert list(data["params_kept"]) == pytest.approx(4 * [1.0] + [0.5, 0.5, 0.1, 0.1])
    assert list(data["sparsity"]) == 2 * [0.5, 0.5, 0.9, 0.9]
    assert set(data["line"]) == {"resnet8-dense"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "net-sfw-k01"),
        ({"params.seed": "11"}, "net-sfw-k01-s1"),
        ({"params.scope": "layer"}, "net-sfw-k01, per layer"),
    ],
)
def test_a_line_joins_the_seeds_of_one_variant(changes, line):
    run = {"params.training": "net-sfw-k01-s1", "params.seed": "1", "params.scope": "global"}
    assert line_of(run | changes) == line


def test_histograms_of_every_layer(tmp_path):
    data = histogram_data([sweep_record(train_record("dense"))])
    assert list(data["count"]) == [47, 550, 400, 500, 400, 47, 50]
    assert list(data["low"]) == [0.0, 0.01, 0.1, 0.01, 0.1, 0.0, 0.01]
    assert list(data["high"]) == [0.01, 0.1, 1.0, 0.1, 1.0, 0.01, 0.1]
    overall = data[data["layer"] == "all"]
    assert list(overall["magnitude"]) == pytest.approx([10**-2.5, 10**-1.5, 10**-0.5])
    assert overall["share"].sum() == pytest.approx(0.997)  # 3 of 1000 are zero


def test_weight_figures_are_the_same_bytes_twice(tmp_path):
    record = sweep_record(train_record("dense"))
    for folder in ("a", "b"):
        drawn = write_weights([record], NO_ROWS, tmp_path / folder)
        assert drawn == {record.training: tmp_path / folder / f"weights/{record.training}.png"}
    found = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(found) == 5
    for name in found:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_no_data_no_figures(tmp_path):
    import pandas as pd

    curves = pd.DataFrame(columns=["training", "epoch", "step", "metric", "value"])
    write_figures(frame([]), frame([]), curves, {}, NO_ROWS, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.csv", "sweep.csv"]


@pytest.mark.parametrize(("epochs", "metrics"), [(5000, 2), (5001, 1)])
def test_long_curves_are_written_as_drawn(tmp_path, epochs, metrics):
    import pandas as pd

    rows = [("t", e, e, m, 1.0) for m in ("train/loss", "validation/top1") for e in range(epochs)]
    curves = pd.DataFrame(rows, columns=["training", "epoch", "step", "metric", "value"])
    write_figures(frame([]), frame([]), curves, {"t": "dense"}, NO_ROWS, tmp_path)
    assert pd.read_csv(tmp_path / "curves.csv")["metric"].nunique() == metrics
