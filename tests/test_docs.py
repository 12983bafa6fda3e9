"""The documents say what is true: their code runs, their columns exist."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"`([\w/.]+\.py)`")


def blocks(page: str) -> list[tuple[int, str]]:
    """Line number and text of every Python block of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in BLOCK.finditer(text)]


def test_api_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    found = blocks("api.md")
    assert len(found) >= 5
    for line, code in found:
        source = "\n" * line + code  # a traceback then points into the page
        exec(compile(source, str(DOCS / "api.md"), "exec"), session)
    printed = capsys.readouterr().out
    removed = re.search(r"(\d+)% of the channels removed, (\d+)% of the images right", printed)
    assert removed, printed
    assert removed.group(1) == "50"
    assert int(removed.group(2)) >= 90
    assert (tmp_path / "slim.safetensors").stat().st_size > 0


def test_every_column_of_every_table_is_defined() -> None:
    page = (DOCS / "tables.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    defined = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert all((ROOT / place).exists() for row in rows for place in PLACE.findall(row[-1]))
    files = [*ROOT.glob("reports/tables/provenance.json")]
    files += ROOT.glob("studies/**/reports/tables/provenance.json")
    assert len(files) > 5
    for file in files:
        for table in json.loads(file.read_text(encoding="utf-8")).values():
            for header, field in table["columns"].items():
                assert any(fnmatchcase(field, d) for d in defined), f"{file}: {header}: {field}"
