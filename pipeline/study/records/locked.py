"""The records that dvc.lock lists, read without DVC and without torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pipeline.study import paths

LOCK = Path("dvc.lock")


def listed(folder: Path = Path()) -> dict[str, str]:
    """MD5 of every output in a folder's dvc.lock, by path; empty without the file."""
    lock = folder / LOCK
    return outputs(lock.read_text(encoding="utf-8")) if lock.is_file() else {}


def outputs(lock: str) -> dict[str, str]:
    """The same from the text of the file. Read line by line: parsing YAML takes seconds."""
    found: dict[str, str] = {}
    block = path = ""
    for line in lock.splitlines():
        if (opened := re.fullmatch(r"    (\w+):", line)) is not None:
            block = opened[1]
        elif (named := re.fullmatch(r"    - path: (.+)", line)) is not None:
            path = named[1]
        elif block == "outs" and (hashed := re.fullmatch(r"      md5: (\w+)", line)) is not None:
            found[path] = hashed[1]
    return found


def md5(path: Path) -> str:
    """The hash that DVC writes for a file."""
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324


def records_differ(folder: Path = Path()) -> bool:
    """Whether any record of a study's folder is not the file that its dvc.lock lists."""
    known = listed(folder)
    files = {p.relative_to(folder).as_posix(): p for p in (folder / paths.RECORDS).rglob("*.json")}
    return any(known[name] != md5(path) for name, path in files.items() if name in known)
