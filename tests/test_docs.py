"""The documents say what is true: their code runs, their columns exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

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


IMAGE = re.compile(r"""<(?:img|source)[^>]*\ssrc(?:set)?="(?!data:|https?:)([^"?#]+)""")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]*)(#[^)\s]*)?\)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
PAGES += ROOT.glob("studies/**/README.md")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()).strip() for head in heads]
    return {re.sub(r" ", "-", head) for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link, anchor in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if ":" in link:
            continue
        target = page if not link else page.parent / link
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor[1:] in anchors(target), f"{page.name}: {link}{anchor}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "images/pareto-dark.svg" in home
    assert not re.search(r"""<(?:script|link)[^>]+(?:src|href)="https?://""", home)
    for page in tmp_path.rglob("*.html"):  # mkdocs checks no HTML, such as the README's pictures
        for image in IMAGE.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / unquote(image)).is_file(), f"{page.name}: {image}"


def test_every_page_of_the_site_exists() -> None:
    """Where mkdocs is not installed, this tells that a page was renamed."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = set(re.findall(r"(?<=[ -])([\w/-]+\.md)$", text, re.MULTILINE))
    virtual = {"index.md", "CONTRIBUTING.md"}
    assert {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")} >= pages - virtual
    left_out = {p.name for p in DOCS.glob("*.md")} - pages
    assert not left_out, f"add to nav in mkdocs.yml: {left_out}"
