"""A tar file with a manifest of SHA-256 hashes, which are checked before any use.

The hashes detect damage, mix-ups and edits of single files. They are not a signature.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.files import DamagedFileError, file_sha256, replacing

MANIFEST = "bundle.json"


def below(folder: Path, base: Path) -> dict[str, Path]:
    """Every file below `folder` by its name relative to `base`, except compiled Python and
    temporary files of killed writes."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    found = [p for p in found if not (p.name.startswith(".") and p.suffix == ".tmp")]
    return {p.relative_to(base).as_posix(): p for p in found}


def pack(
    out: Path, manifest: Mapping[str, Any], files: Mapping[str, Path], texts: Mapping[str, str]
) -> None:
    """Write a tar.gz that begins with the manifest. `files` and `texts` are by name inside it."""
    hashes = {name: file_sha256(path) for name, path in files.items()}
    data = {name: text.encode() for name, text in texts.items()}
    full = {**manifest, "files": hashes}
    data[MANIFEST] = (json.dumps(full, indent=2, sort_keys=True) + "\n").encode()
    with (
        replacing(out) as temporary,
        tarfile.open(temporary, "w:gz", compresslevel=1) as tar,
    ):
        for name in sorted(data, key=lambda n: n != MANIFEST):
            entry = tarfile.TarInfo(name)
            entry.size = len(data[name])
            tar.addfile(entry, io.BytesIO(data[name]))
        for name, path in sorted(files.items()):
            tar.add(path.resolve(), name, recursive=False)


def _read_to_the_end(archive: Path) -> None:
    """Read the archive to its end, since tarfile stops before gzip's checksum.

    Raises:
        EOFError, OSError: the archive is truncated or altered.
    """
    with gzip.open(archive) as stream:
        while stream.read(1 << 20):
            pass


def unpack(archive: Path, folder: Path, allowed: Iterable[str]) -> dict[str, Any]:
    """Extract into an empty `folder`, check every byte; returns the manifest.

    Args:
        allowed: prefixes of the names that the archive may contain.

    Raises:
        DamagedFileError: not such an archive, or a file is missing, altered, not in the manifest or
            not allowed; names it.
    """
    beginnings = tuple(allowed)
    try:
        _read_to_the_end(archive)
        with tarfile.open(archive) as tar:
            names = {m.name for m in tar.getmembers()}
            for member in tar.getmembers():
                if not member.isfile() or ".." in PurePosixPath(member.name).parts:
                    raise DamagedFileError(f"{archive}: {member.name}: not a plain file")
            tar.extractall(folder, filter="data")
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        hashes = dict(manifest["files"])
    except (
        tarfile.TarError,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(f"{archive}: not a whole bundle ({error})") from error
    for name in sorted(names - {MANIFEST} | set(hashes)):
        if not name.startswith(beginnings):
            raise DamagedFileError(f"{archive}: {name}: does not belong there")
        if name not in names or name not in hashes:
            raise DamagedFileError(f"{archive}: {name}: missing, or not in the manifest")
        if file_sha256(folder / name) != hashes[name]:
            raise DamagedFileError(f"{archive}: {name}: altered, its hash is another")
    return manifest
