"""Make a folder with params.yaml its own DVC project: `espalier study sync [FOLDER...]`.

Writes the folder's dvc.yaml (the repository's, with another `code`), its `.dvc`, and `code/` with
links to the packages that the stages depend on; `root` in params.yaml then says `code`. Run it
after an edit of the repository's dvc.yaml, and in a folder that was copied or moved. Without
FOLDER: all studies.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from pipeline.files import write_text

SOURCE = Path(__file__).resolve().parents[2]
PACKAGES = ("methods", "models", "pipeline", "stages")
CODE = "code"
_CONFIG = """\
[core]
    analytics = false
    check_update = false
    autostage = false
"""
_IGNORED = "/config.local\n/tmp\n/cache\n"


def files(source: Path = SOURCE) -> dict[str, str]:
    """The files, by name, that are the same in every study."""
    pipeline = (source / "dvc.yaml").read_text(encoding="utf-8")
    return {
        "dvc.yaml": re.sub(r"^  - code: \.", f"  - code: {CODE}", pipeline, count=1, flags=re.M),
        ".dvcignore": (source / ".dvcignore").read_text(encoding="utf-8"),
        ".dvc/config": _CONFIG,
        ".dvc/.gitignore": _IGNORED,
    }


def links(folder: Path, source: Path = SOURCE) -> dict[str, str]:
    """The links of a study, and the target of each.

    DVC applies .dvcignore only to paths inside the project. With paths below `../..` it would also
    hash __pycache__, and it would skip one link to the whole repository as another project.
    """
    there = os.path.relpath(source, (folder / CODE).resolve())
    return {f"{CODE}/{name}": f"{there}/{name}" for name in PACKAGES}


def sync(folder: Path, source: Path = SOURCE) -> list[str]:
    """Write what differs. Returns the names of what was written.

    Raises:
        click.UsageError: the folder has no params.yaml, or this code is not in a repository.
    """
    if not (source / "dvc.yaml").is_file():
        raise click.UsageError(f"{source / 'dvc.yaml'} is missing: run this in a clone")
    params = folder / "params.yaml"
    if not params.is_file():
        raise click.UsageError(f"{params} is missing: a study is a folder with params.yaml")
    written = []
    for name, text in files(source).items():
        path = folder / name
        if path.is_symlink():
            path.unlink()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            write_text(path, text)
            written.append(name)
    for name, target in links(folder, source).items():
        path = folder / name
        if not path.is_symlink() or os.readlink(path) != target:
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(target)
            written.append(name)
    before = params.read_text(encoding="utf-8")
    after = re.sub(r"^root:.*$", f"root: {CODE}", before, flags=re.M)
    if after != before:
        write_text(params, after)
        written.append("params.yaml")
    return written


def studies(source: Path = SOURCE) -> list[Path]:
    """All study folders of the repository."""
    return sorted(path.parent for path in (source / "studies").rglob("params.yaml"))


@click.group(help=__doc__)
def study() -> None: ...


@study.command("sync")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False))
def _sync(folders: tuple[Path, ...]) -> None:
    """Write dvc.yaml, .dvc and code/ of these studies (default: all of studies/)."""
    for folder in folders or studies():
        written = sync(folder)
        click.echo(f"{folder}: {', '.join(written) or 'up to date'}")
