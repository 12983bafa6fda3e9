"""README.md and docs/results.md show what the tables say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.readme import (
    BEGIN,
    END,
    SHOWN,
    draw_main_figure,
    main_results,
    replaced,
    results,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("name", "block"), [("README.md", main_results), ("docs/results.md", results)]
)
def test_the_documents_are_the_tables(name: str, block: Callable[[Path], str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert replaced(text, block(ROOT), name) == text, "run `espalier readme`"


def test_every_row_of_the_default_study_is_shown() -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    table = (ROOT / "reports/tables/main.csv").read_text().splitlines()[1:]
    assert table
    for line in table:
        assert f"`{line.split(',')[0]}`" in text


def test_the_readme_is_short_and_opens_with_a_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 700
    assert text.index("<picture>") < text.index("\n## ")
    for ground in ("light", "dark"):
        picture = ROOT / f"docs/images/pareto-{ground}.svg"
        assert f'"docs/images/{picture.name}"' in text
        assert picture.stat().st_size < 150_000


def test_the_figure_shows_the_rows_of_the_table(tmp_path: Path) -> None:
    source = ROOT / SHOWN / "reports/tables/compare.csv"
    copy = tmp_path / SHOWN / "reports/tables/compare.csv"
    copy.parent.mkdir(parents=True)
    (tmp_path / "docs/images").mkdir(parents=True)
    copy.write_text(source.read_text())
    draw_main_figure(tmp_path)
    named = re.compile(r"<!-- ([\w-]+) -->")
    for ground in ("light", "dark"):
        name = f"docs/images/pareto-{ground}.svg"
        tracked, made = (named.findall((p / name).read_text()) for p in (ROOT, tmp_path))
        assert tracked == made
        assert {line.split(",")[2] for line in source.read_text().splitlines()[1:]} <= set(made)


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        replaced("no marks", "x")
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"


def test_means_over_seeds_are_marked_where_they_count_from_a_reference(tmp_path: Path) -> None:
    table = tmp_path / "studies/families-cifar10/reports/tables/compare.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "row,method,seeds,score,score_std,macs_nonzero,macs_nonzero_std,params_nonzero,"
        "params_nonzero_std,cost,record,of,status\n"
        "low,hspg,1,50.0,,40.0,,30.0,,1e9,abcdef0,trained,done\n"
        "high,gates,2,60.0,1.5,50.0,0.5,20.0,0.25,2e9,bcdef01 cdef012,width=16,done\n"
        "never,sfw,0,,,,,,,,,trained,not run\n"
    )
    lines = [line for line in results(tmp_path).splitlines() if line.startswith("| `")]
    assert lines == [
        "| `high` | gates | 2 | 60.00 ± 1.50 | 50.0 ± 0.5 † | 20.0 ± 0.2 † | 2e+09 "
        "| `bcdef0` `cdef01` |",
        "| `low` | hspg | 1 | 50.00 | 40.0 | 30.0 | 1e+09 | `abcdef` |",
    ]
