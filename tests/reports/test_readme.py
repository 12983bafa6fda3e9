"""README.md shows what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.readme import BEGIN, END, replaced, results

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_is_the_tables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(text, results(ROOT)) == text, "run `python -m reports.readme`"


def test_every_row_of_the_default_study_is_shown() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = (ROOT / "reports/tables/main.csv").read_text().splitlines()[1:]
    assert table
    for line in table:
        assert f"`{line.split(',')[0]}`" in text


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        replaced("no marks", "x")
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
