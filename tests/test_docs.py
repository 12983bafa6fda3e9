"""The code in the documentation runs, as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
