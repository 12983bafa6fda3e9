"""Inventory of a folder of images: check every file once, and detect later changes.

DVC does not track the folder. Therefore the prepared data hold the SHA-256 of each file (`take`),
and `require_same` compares the folder with this list before anything is read from it. A cache
beside the prepared data holds size and times of each file, so that only new or changed files are
read again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.data.files import DataError
from pipeline.data.images import decode, in_parallel, refuse
from pipeline.files import DamagedFileError, read_json, write_text

log = logging.getLogger("espalier")

Seen = Mapping[str, Sequence[int | str]]
"""Path below the root -> size, modification time, status change time (ns), SHA-256."""
Stats = Mapping[str, list[int] | None]
_R = TypeVar("_R")


def cache_path(prepared: Path) -> Path:
    """The cache beside a folder of prepared data. It may be deleted; only time is lost."""
    return prepared.with_name(f"{prepared.name}.files.json")


def take(root: Path, paths: Sequence[str], cache: Path) -> dict[str, str]:
    """Decode each of `paths` below `root`, and return its SHA-256.

    Raises:
        DataError: some cannot be decoded; counts them and lists the first ones.
    """
    seen = _read_cache(cache, root)
    stats, known = _known(root, paths, seen)
    found = _read(root, [p for p in paths if p not in known], _checked)
    bad = [str(result) for result in found.values() if isinstance(result, DataError)]
    digests = known | {p: d for p, d in found.items() if isinstance(d, str)}
    if found:
        _write_cache(cache, root, {**seen, **_entries(stats, digests)})
    refuse(bad, f"of {len(paths)} images cannot be used")
    return digests


def require_same(
    root: Path, table: Mapping[str, str | None], found: Collection[str], cache: Path
) -> None:
    """Check that `found`, the image files below `root`, have the paths and content of `table`.

    Args:
        table: SHA-256 by path; None for a file that no split uses.

    Raises:
        DataError: files were added, removed or replaced.
    """
    names, seen = set(found), _read_cache(cache, root)
    paths = [p for p, digest in table.items() if digest is not None and p in names]
    stats, known = _known(root, paths, seen)
    fresh = _read(root, [p for p in paths if p not in known], _digest)
    same = {p: d for p, d in (known | fresh).items() if d is not None and d == table[p]}
    if fresh:
        # The others are not added: prepare-data must decode them.
        _write_cache(cache, root, {**seen, **_entries(stats, same)})
    changes = {
        "added": names - table.keys(),
        "removed": table.keys() - names,
        "replaced": set(paths) - same.keys(),
    }
    if any(changes.values()):
        counted = ", ".join(f"{len(files)} {how}" for how, files in changes.items() if files)
        first = min(file for files in changes.values() for file in files)
        raise DataError(
            f"{root}: its images changed after prepare-data: {counted}, e.g. {first}. Restore "
            "them, or run `dvc repro -f prepare-data`; `dvc repro` then repeats what used them"
        )


def _known(root: Path, paths: Iterable[str], seen: Seen) -> tuple[Stats, dict[str, str]]:
    """Size and times of every file, and the digest of files that the cache says are unchanged."""
    stats = {path: _stat(root / path) for path in paths}
    known = {
        path: str(seen[path][3])
        for path, stat in stats.items()
        if stat is not None and path in seen and list(seen[path][:3]) == stat
    }
    return stats, known


def _read(root: Path, paths: Sequence[str], work: Callable[[Path], _R]) -> dict[str, _R]:
    if paths:
        log.info("%s: reading %d images", root, len(paths))
    results = in_parallel(work, [root / path for path in paths], "reading images")
    return dict(zip(paths, results, strict=True))


def _entries(stats: Stats, digests: Mapping[str, str]) -> dict[str, list[int | str]]:
    return {path: [*(stats[path] or ()), digest] for path, digest in digests.items()}


def _stat(path: Path) -> list[int] | None:
    """Size and times; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _checked(path: Path) -> str | DataError:
    """SHA-256 of a file that can be decoded, or the error."""
    try:
        data = path.read_bytes()
        decode(path, data)
    except OSError as error:
        return DataError(f"{path}: cannot be read ({error.strerror})")
    except DataError as error:
        return error
    return hashlib.sha256(data).hexdigest()


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _read_cache(path: Path, root: Path) -> Seen:
    """The cached entries of files below `root`; empty if the cache is for another folder."""
    try:
        content = read_json(path)
        return content["files"] if content["root"] == _place(root) else {}
    except (OSError, DamagedFileError, KeyError, TypeError):
        return {}


def _write_cache(path: Path, root: Path, seen: Seen) -> None:
    try:
        write_text(path, json.dumps({"root": _place(root), "files": seen}))
    except OSError as error:
        log.warning("%s: not written (%s); images will be read again", path, error)


def _place(root: Path) -> str:
    return os.path.realpath(root)
