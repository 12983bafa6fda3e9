"""The error class of this package, and atomic replacement of a folder's files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import naming_full_disk


class DataError(ValueError):
    """A data file is missing, damaged or wrong; the message says what to do."""


def md5(path: Path) -> str:
    """Hex md5 of a file's bytes, the checksum that authors of data sets publish."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder whose files replace those of `folder` at the end.

    The files are moved in order of name after all are complete. On an exception `folder` is
    unchanged.

    Raises:
        OSError: the disk is full; names the folder and the free space.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with naming_full_disk(folder):
            yield temporary
            folder.mkdir(exist_ok=True)
            fresh = sorted(p.name for p in temporary.iterdir())
            for stale in folder.iterdir():
                if stale.is_file() and stale.name not in fresh:
                    stale.unlink()
            for name in fresh:
                os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
