"""Hooks of mkdocs: pages outside docs/ join the site, links to source code become plain text.

README.md is the home page. Study notes, figures and comparison pages that a page links to are taken
from where they are, so that the site shows what git tracks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
IMAGE = re.compile(r"""(\s(?:src|srcset)=")([^":]+)(")""")  # in HTML, which the README needs
SHOWN = {".md", ".png", ".svg", ".html"}


def source_of(uri: str) -> Path:
    """The file behind a page of the site."""
    if uri == "index.md":
        return ROOT / "README.md"
    return DOCS / uri if (DOCS / uri).exists() else ROOT / uri


def uri_of(path: Path) -> str | None:
    """Where a file of the repository stands on the site; None for source code and folders."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.suffix not in SHOWN or not path.is_file() or not path.is_relative_to(ROOT):
        return None
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def target_of(source: Path, link: str) -> Path:
    return Path(os.path.normpath(source.parent / link))


def on_files(files: Files, config: Any) -> Files:
    """Add README.md and, from page to page, what is linked."""
    todo = ["index.md", *(f.src_uri for f in files.documentation_pages())]
    seen = {f.src_uri for f in files}
    while todo:
        uri = todo.pop()
        source = source_of(uri)
        if uri not in seen:
            seen.add(uri)
            files.append(File.generated(config, uri, abs_src_path=str(source)))
        if source.suffix == ".md":
            text = source.read_text(encoding="utf-8")
            links = [m[3] for m in LINK.finditer(text)] + [m[2] for m in IMAGE.finditer(text)]
            for link in links:
                found = uri_of(target_of(source, link))
                if found and found not in seen:
                    todo.append(found)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they work in the repository -> links as they work on the site."""
    del config, files  # mkdocs passes them
    source = source_of(page.file.src_uri)
    here = PurePosixPath(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        image, text, link, anchor = match.groups()
        target = target_of(source, link)
        if ":" in link or not target.exists():
            return match[0]  # the web, or an error that mkdocs reports
        uri = uri_of(target)
        if uri is None:
            return text
        return f"{image}[{text}]({os.path.relpath(uri, here)}{anchor or ''})"

    def moved_image(match: re.Match[str]) -> str:
        uri = uri_of(target_of(source, match[2]))
        return match[0] if uri is None else f"{match[1]}{os.path.relpath(uri, here)}{match[3]}"

    return IMAGE.sub(moved_image, LINK.sub(moved, markdown))
