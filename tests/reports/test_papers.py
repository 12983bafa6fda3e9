"""Published tables: what the files may say, and their rendering beside our runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.study.params.load import load_params
from pipeline.study.tracking.record_views import evaluate_view
from reports.build.papers.comparison import claims_table, paper_table, tables_of
from reports.build.papers.figures import write_paper_figures
from reports.build.papers.published import Paper, load_paper, load_papers
from reports.build.quantities import QUANTITIES
from reports.build.render import cells, csv, latex, markdown, provenance
from reports.build.table import NOT_RUN
from tests.reports.samples import check_golden, eval_record, frame, train_record

STUDIES = Path(__file__).resolve().parents[2] / "studies"
SAMPLE = """\
paper: sample
reference: Somebody, Something, 2020
tables:
  main:
    title: A network
    columns: {macs: 1, params: 1, top1: 2}
    source: "[readme]"
    differs: ["80 images, theirs 90"]
    rows:
      - {name: baseline, values: {macs: 100.0, params: 100.0, top1: {value: 97.0, std: 0.2}}}
      - name: theirs
        values: {macs: 46.5, top1: [95.25, 95.0, 95.5]}
        ours: {study: s, pruning: resnet8-hspg-s*-p50}
        differs: [no dropout, half the epochs]
      - name: another
        values: {top1: 94.0}
        source: words of a letter
        ours: {study: s, pruning: resnet8-imp-s0}
"""


CONCLUDED = """\
figures:
  one: {title: Figure 1, against: macs, quantities: [top1], lines: [{name: theirs, table: main}]}
claims:
  - says: less of it is better
    smaller: {table: main, row: another, quantity: top1}
    larger: {table: main, row: theirs, quantity: top1}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "sample.yaml"
    file.write_text(SAMPLE)
    return file


@pytest.fixture
def paper(path: Path) -> Paper:
    return load_paper(path)


@pytest.fixture
def runs():
    trainings = [train_record("dense"), train_record("hspg", 0), train_record("hspg", 1)]
    return frame([evaluate_view(eval_record(t), t) for t in trainings])


@pytest.mark.parametrize(("suffix", "render"), [("md", markdown), ("csv", csv), ("tex", latex)])
def test_golden(paper, runs, suffix, render):
    check_golden(f"tables/sample-main.{suffix}", render(paper_table(paper, "main", runs)))


def test_ours_is_the_mean_over_seeds_beside_the_difference(paper, runs):
    row = paper_table(paper, "main", runs).rows.set_index("row").loc["theirs"]
    assert (row["ours_top1"], row["ours_macs"], row["seeds"]) == (95.5, 45.0, 2)
    assert (row["ours_top1_low"], row["ours_top1_high"]) == (95.0, 96.0)
    assert row["inside_top1"] == "yes"
    assert row["difference_top1"] == pytest.approx(0.25)
    assert row["difference_macs"] == pytest.approx(-1.5)
    assert row["difference_params"] is None or row["difference_params"] != row["difference_params"]


def test_a_score_that_our_data_does_not_have_stays_empty(paper, runs):
    """Ten classes have no top-5; a paper's column of it must not stop the report."""
    row = paper_table(paper, "main", runs.drop(columns="metrics.final/top1")).rows
    row = row.set_index("row").loc["theirs"]
    assert row.get("ours_top1") is None or row["ours_top1"] != row["ours_top1"]
    assert (row["ours_macs"], row["paper_top1"]) == (45.0, 95.25)


def test_without_runs_nothing_is_ours(paper):
    table = paper_table(paper, "main", frame([]))
    headers = [c.header for c in table.columns]
    ours, published = headers.index("top-1 (%): ours"), headers.index("top-1 (%): paper")
    text = cells(table)
    assert [row[ours] for row in text] == ["–", NOT_RUN, NOT_RUN]
    assert [row[published] for row in text] == ["97.00 ± 0.20", "95.25 [95.00, 95.50]", "94.00"]
    assert table.runs == ((), (), ())


@pytest.mark.parametrize(("published", "inside"), [(95.5, "yes"), (95.0, "above"), (96.5, "below")])
def test_inside_says_on_which_side_of_the_published_range_we_are(path, runs, published, inside):
    span = f"[{published}, {published - 0.25}, {published + 0.25}]"
    path.write_text(SAMPLE.replace("[95.25, 95.0, 95.5]", span))
    row = paper_table(load_paper(path), "main", runs).rows.set_index("row").loc["theirs"]
    assert row["inside_top1"] == inside


@pytest.mark.parametrize(
    ("scores", "seeds", "verdict"),
    [((94.0, 95.0), "2 of 2", "holds"), ((96.0, 94.0), "1 of 2", "undecided"),
     ((96.0, 98.0), "0 of 2", "does not hold")],
)  # fmt: skip
def test_a_claim_is_judged_by_means_and_counted_by_seeds(path, scores, seeds, verdict):
    """Theirs has 95 and 96; the claim says that the other row has less."""
    path.write_text(SAMPLE.replace("resnet8-imp-s0", "resnet8-imp-s*-p50") + CONCLUDED)
    trainings = [train_record("hspg", 0), train_record("hspg", 1)]
    views = [evaluate_view(eval_record(t), t) for t in trainings]
    for seed, score in enumerate(scores):
        other = train_record("imp", seed)
        record = replace(eval_record(other), final=dict(eval_record(other).final, top1=score))
        views.append(evaluate_view(record, other))
    paper = load_paper(path)
    keys = ["resnet8-hspg-s0-p50", "resnet8-imp-s0-p50"]
    table = claims_table(paper, frame(views), "s", keys)
    (row,) = cells(table)
    mean = sum(scores) / 2
    sign = "<" if mean < 95.5 else ">="
    assert row == [
        "less of it is better", "94.00 < 95.25", f"{mean:.2f} {sign} 95.50", seeds, verdict,
    ]  # fmt: skip
    assert len(table.runs[0]) == 4
    assert claims_table(paper, frame(views), "another study", keys) is None
    assert claims_table(paper, frame(views), "s", keys[:1]) is None, "of another part"
    (row,) = cells(claims_table(paper, frame([]), "s", keys))
    assert row[2:] == [NOT_RUN, "–", NOT_RUN]


def test_a_figure_of_a_paper_with_ours_over_it(path, runs, tmp_path):
    path.write_text(SAMPLE + CONCLUDED)
    paper = load_paper(path)
    assert write_paper_figures(paper, "s", frame([]), tmp_path) == []
    assert write_paper_figures(paper, "s", runs, tmp_path) == ["sample-one"]
    first = (tmp_path / "sample-one.svg").read_bytes()
    write_paper_figures(paper, "s", runs, tmp_path)
    assert (tmp_path / "sample-one.svg").read_bytes() == first
    assert (tmp_path / "sample-one-dark.svg").read_bytes() != first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("row: another", "row: anther", "main has no row 'anther'"),
        ("top1}\n    larger", "macs}\n    larger", "'another' has no value 'macs'"),
        ("theirs, table: main}]", "theirs, table: mian}]", "no table 'mian'"),
        ("quantities: [top1]", "quantities: [top5]", "main has no column 'top5'"),
    ],
)  # fmt: skip
def test_what_a_figure_or_a_claim_names_must_be_published(path, old, new, message):
    assert CONCLUDED.count(old) == 1
    path.write_text(SAMPLE + CONCLUDED.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_paper(path)


def test_cells_lead_to_runs(paper, runs):
    table = paper_table(paper, "main", runs)
    assert [len(group) for group in table.runs] == [0, 2, 0]
    assert "metrics.final/top1" in provenance([table])


def test_two_runs_of_one_seed_are_refused(paper):
    trainings = [train_record("hspg", 0), train_record("hspg", 1)]
    records = [replace(eval_record(t), seed=0) for t in trainings]
    same = [evaluate_view(r, replace(t, seed=0)) for r, t in zip(records, trainings, strict=True)]
    with pytest.raises(ValueError, match="'theirs': two runs have the same seed"):
        paper_table(paper, "main", frame(same))


def test_unknown_table_lists_the_known(paper, runs):
    with pytest.raises(ValueError, match=r"no table 'mian' \(known: main\)"):
        paper_table(paper, "mian", runs)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source: "[readme]"', 'source: "[recall]"', "main.source: .*from memory"),
        ("words of a letter", '"[readme], top-1 [recall]"', "'another'.source: .*from memory"),
        ("words of a letter", '"[memory]"', r"'another'.source: .*unknown mark \[memory\]"),
        ('    source: "[readme]"\n', "", "row 'baseline': source: missing"),
        ("top1: 94.0", "top1: 0.94", "row 'another': values.top1: 0.94 is not in percent"),
        ("top1: 94.0", "top5: 94.0", "row 'another': values.top5: no such column"),
        ("top1: 94.0", "top1: high", "'another'.values.top1"),
        ("[95.25, 95.0, 95.5]", "[95.75, 95.0, 95.5]", "'theirs'.values.top1.*does not hold"),
        ("top1: 2}", "top1: 2, speed: 1}", "columns: unknown 'speed'"),
        ("name: another", "name: theirs", "row 'theirs' is there twice"),
        ("study: s, pruning: resnet8-imp-s0", "study: s", "'another'.ours.pruning"),
        ("paper: sample", "paper: simple", "'simple' is not the name of the file"),
        ("tables:", "tables: [", "not valid YAML"),
    ],
)
def test_errors_name_file_and_row(path, old, new, message):
    assert SAMPLE.count(old) == 1
    path.write_text(SAMPLE.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        load_paper(path)
    assert str(path) in str(error.value)


@pytest.fixture(scope="module")
def papers() -> dict[str, Paper]:
    return load_papers()


def test_our_files_are_valid_and_render(papers):
    empty = frame([])
    for paper in papers.values():
        for name in paper.tables:
            table = paper_table(paper, name, empty)
            assert len({c.header for c in table.columns}) == len(table.columns)
            assert markdown(table).count("\n") == len(table.rows) + 4


def test_spot_checks_against_the_sources(papers):
    def value(paper: str, table: str, row: str, key: str) -> float:
        rows = {r.name: r for r in papers[paper].tables[table].rows}
        return rows[row].values[key].value

    assert value("oto", "vgg16-bn-cifar10", "OTO", "macs") == 26.8
    assert value("oto", "notebooks-cifar10", "ResNet50, DHSPG", "params_m") == 0.837108
    assert value("early-bird", "vgg16-cifar100", "EB Train, 30 %", "top1") == 72.17
    assert value("pfs", "networks", "ResNet56", "macs_m") == 125.7519
    iterative = ("renda2020", "resnet20-iterative-170")
    assert value(*iterative, "learning-rate rewinding, density 0.1074", "top1") == 91.07
    assert value("sfw", "digits", "CNN, SGD, BN recalibrated, 10 % kept", "top1") == 98.7


def test_tables_of_a_study(papers):
    def named(paper, study, part=""):
        keys = load_params(STUDIES / study / part / "params.yaml").file.prunings
        return tables_of(papers[paper], study, list(keys))

    assert "vgg16-cifar10" in named("oto", "oto-cifar10")
    assert tables_of(papers["oto"], "oto-imagenet", []) == []
    assert named("oto", "oto-imagenet") == ["resnet50-imagenet", "notebooks-imagenet"]
    assert named("rethinking", "oto-cifar10") == []
    assert "figure4-end" in named("lottery-ticket", "lottery-mnist", "trial-0")
    assert named("lottery-ticket", "lottery-mnist-standardised") == [], "rows of another study"


def test_quantities_say_their_unit():
    assert all("(" in q.header or name == "best_epoch" for name, q in QUANTITIES.items())
