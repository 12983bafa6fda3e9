"""Sizes of a pruning that names a reference: of that network, in every table, figure and page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cli.readme import MARK, STUDIES, results
from pipeline.data.info import DatasetInfo
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.data import DataRecord
from pipeline.study.records.record import Counts, Reference, TrainRecord, write_record
from pipeline.study.tracking.record_views import evaluate_view
from pipeline.study.tracking.study_runs import Entry, Study
from reports.build.candidates import AXES, candidates
from reports.build.compare import compare_table, to_json
from reports.build.figures import _fraction
from reports.build.quantities import QUANTITIES
from reports.build.render import cells, csv, latex, markdown, plain
from reports.build.style import Styles
from reports.build.tables import main_table
from tests.reports.samples import eval_record, frame, of_network, train_record

STANDARD = Reference("width=8", 1000, 20_000)  # as large as the dense network of the samples
LEFT = {"params_kept": 52.0, "params_nonzero": 50.0, "macs_kept": 45.0, "macs_nonzero": 40.0}


def wide() -> TrainRecord:
    """A training on a network a quarter wider than the sample's."""
    return replace(train_record("gates"), model_args={"width": 10})


@pytest.fixture
def runs() -> pd.DataFrame:
    """A dense row, and one cut to the same sizes from the wider network."""
    dense, row = eval_record(train_record("dense")), eval_record(wide())
    row = replace(row, counts=Counts(1600, 520, 500, 30_000, 9_000, 8_000))
    views = evaluate_view(dense, train_record("dense")), evaluate_view(row, wide(), STANDARD)
    return frame(views)


@pytest.fixture
def prunings(runs, tmp_path) -> list[Entry]:
    (tmp_path / "there").touch()
    return [Entry(key, key, tmp_path / "there") for key in runs["params.pruning"]]


def test_the_main_table_counts_from_it_and_says_so(runs, prunings):
    table = main_table(runs, prunings)
    rows = table.rows.set_index("method")
    assert {k: rows.loc["gates", k] for k in LEFT} == LEFT
    assert {k: rows.loc["dense", k] for k in LEFT} == LEFT
    assert list(rows["of"]) == ["trained", "width=8"]
    for text in (markdown(table), csv(table), latex(table), plain(table)):
        assert "width=8" in text
    assert "or of the reference that the pruning names" in markdown(table)


def test_a_study_without_one_has_no_such_column(runs, prunings):
    table = main_table(runs[:1], prunings[:1])
    assert "of" not in table.rows
    assert "of the dense network; MACs" in table.title
    assert "of" not in compare_table(candidates(runs[:1], pd.DataFrame()), "top1").rows


def test_a_row_that_was_not_run_is_of_nothing_yet(runs, prunings, tmp_path):
    asked = {"model": "resnet_cifar/resnet8", "method": "gates"}
    absent = Entry("later", "later", tmp_path / "none", asked=asked)
    table = main_table(runs, [*prunings, absent])
    at = [c.key for c in table.columns].index("of")
    assert [row[at] for row in cells(table)] == ["trained", "width=8", "–"]


def test_it_competes_where_the_reference_does(runs):
    found = candidates(runs, pd.DataFrame())
    row = next(c for c in found if c.method == "gates")
    assert row.league == (
        "resnet8 width=8",
        "digits",
    )  # found by its size
    assert {k: row.values[k] for k in LEFT} == {k: (v,) for k, v in LEFT.items()}
    assert row.mean("below") == pytest.approx(97.0 - 95.0)
    assert "target fraction 0.5 of width=8, trained as resnet8 width=10" in row.settings
    table = compare_table(found, "top1")
    assert list(table.rows["of"]) == ["trained", "trained", "width=8"]
    shown = json.loads(to_json(found, AXES, ["top1"], Styles([], [])))["rows"][-1]
    assert (shown["network"], shown["values"]["macs_kept"]) == ("resnet8 width=8", [45.0])


def test_alone_it_competes_under_the_name_of_its_reference(runs):
    (row,) = candidates(runs[1:], pd.DataFrame())
    assert row.network == "resnet8 width=8"


def test_a_dense_network_stays_its_own_whole():
    training = replace(train_record("dense"), model_args={"width": 10})
    record = replace(eval_record(training), counts=Counts(1600, 520, 500, 30_000, 9_000, 8_000))
    found = candidates(frame([evaluate_view(record, training, STANDARD)]), pd.DataFrame())
    dense = next(c for c in found if c.kind == "dense")
    assert dense.network == "resnet8 width=10"
    assert dense.values["macs_kept"] == (100.0,)


def test_paper_tables_and_figures_count_alike(runs):
    row = runs.to_dict("records")[1]
    assert QUANTITIES["macs"].read(row) == 45.0
    assert QUANTITIES["params"].read(row) == 52.0
    assert list(_fraction(runs, "macs_nonzero")) == [0.4, 0.4]


def test_the_readme_marks_the_figures(runs, prunings, tmp_path):
    path = tmp_path / STUDIES[0][0] / "reports/tables/main.csv"
    path.parent.mkdir(parents=True)
    path.write_text(csv(main_table(runs, prunings)))
    dense, gates = (line for line in results(tmp_path).splitlines() if "| `resnet8" in line)
    assert f"| 52.0 {MARK} | 50.0 {MARK} | 45.0 {MARK} | 40.0 {MARK} |" in gates
    assert MARK not in dense


def test_a_published_study_counts_it_from_the_record(tmp_path: Path):
    network = NetworkSpec("small", "resnet8", {"width": 6}, DatasetInfo("digits", (1, 8, 8), 10))
    training, pruned = of_network(network)
    entries = (
        Entry(training.training, training.training, tmp_path / "train.json"),
        Entry(
            pruned.pruning, training.training, tmp_path / "evaluate.json", reference={"width": 6}
        ),
    )
    for entry, record in zip(entries, (training, pruned), strict=True):
        write_record(entry.record, record)
    data = DataRecord("digits", (1, 8, 8), 10, {"train": 9}, training.parents["data"])
    write_record(tmp_path / "data.json", data)
    study = Study("sample", entries[:1], entries[1:], data=tmp_path / "data.json")
    (view,) = study.views[f"evaluate/{pruned.pruning}"]
    assert view.summary()["size/macs_reference"] == pruned.counts.macs_dense
    assert view.params["reference"] == "width=6"
