"""A tar file that begins with a manifest: the name, size and SHA-256 of every file in it.

Nothing is written before the manifest is accepted, and no more than it lists. The hashes detect
damage, mix-ups and edits of single files. They are not a signature.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.files import DamagedFileError, file_sha256, replacing
from pipeline.messages import shortened

MANIFEST = "bundle.json"
MANIFEST_BYTES = 16 << 20
LEAST_BYTES, RATIO = 1 << 30, 200  # unpacked: a GiB, or 200 times the archive if that is more
_CHUNK = 1 << 20
_HEADER, _RECORD = 1 << 16, 10240  # most bytes of a file's headers; unit of reading
_WIDEST = 200  # characters of a name in a message
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Listed(BaseModel):
    """What the manifest says about one file; `size` is in bytes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    sha256: Sha256
    size: Annotated[int, Field(ge=0, lt=1 << 60)]


class Manifest(BaseModel):
    """The first file of a bundle.

    Attributes:
        ask: hash of everything that determines a training, by training.
        files: every other file, by its name in the archive.
        finished, unfinished: trainings that came back; None in a bundle that goes out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    format: Annotated[int, Field(ge=2, le=2)]
    study: str
    ask: dict[str, Sha256]
    files: dict[str, Listed]
    finished: tuple[str, ...] | None = None
    unfinished: tuple[str, ...] | None = None


def below(folder: Path, base: Path) -> dict[str, Path]:
    """Every file below `folder` by its name relative to `base`, except compiled Python and
    temporary files of killed writes."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    found = [p for p in found if not (p.name.startswith(".") and p.suffix == ".tmp")]
    return {p.relative_to(base).as_posix(): p for p in found}


def pack(
    out: Path, manifest: Mapping[str, Any], files: Mapping[str, Path], texts: Mapping[str, str]
) -> None:
    """Write a tar.gz that begins with the manifest, which is completed here. `files` and `texts`
    are by name inside it."""
    data = {name: text.encode() for name, text in texts.items()}
    listed = {name: Listed(sha256=hashlib.sha256(text).hexdigest(), size=len(text))
              for name, text in data.items()}  # fmt: skip
    for name, path in files.items():
        listed[name] = Listed(sha256=file_sha256(path), size=path.stat().st_size)
    full = Manifest(**manifest, format=2, files=listed).model_dump(mode="json", exclude_none=True)
    data = {MANIFEST: (json.dumps(full, indent=2, sort_keys=True) + "\n").encode()} | data
    with (
        replacing(out) as temporary,
        # Links are followed: two files that share their bytes in DVC's cache are two files here.
        tarfile.open(temporary, "w:gz", compresslevel=1, dereference=True) as tar,
    ):
        for name, text in data.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
        for name, path in sorted(files.items()):
            tar.add(path, name, recursive=False)


def read_manifest(text: bytes, where: str) -> Manifest:
    """
    Raises:
        DamagedFileError: not a manifest; begins with `where` and names the key.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(shortened(str(part)) for part in first["loc"])
        way_out = "; of another version? Export it again" if key == "format" else ""
        raise DamagedFileError(
            f"{where}: {key}{': ' * bool(key)}{first['msg']}{way_out}"
        ) from error


class _Limited:
    """The decompressed bytes of an archive, as far as they are allowed."""

    def __init__(self, stream: gzip.GzipFile, archive: Path) -> None:
        self._stream, self._archive, self._left = stream, archive, 0

    def allow(self, size: int) -> None:
        """Let `size` more bytes be read, and what tarfile reads ahead."""
        self._left = size + 2 * _RECORD

    def read(self, size: int) -> bytes:
        """At most `size` bytes.

        Raises:
            DamagedFileError: more than allowed.
        """
        if self._left <= 0:
            raise DamagedFileError(f"{self._archive}: unpacks to more than its manifest lists")
        data = self._stream.read(min(size, self._left))
        self._left -= len(data)
        return data


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Name the archive where it cannot be read."""
    try:
        yield
    except DamagedFileError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, ValueError) as error:
        raise DamagedFileError(f"{archive}: not a whole bundle ({error})") from error


def unpack(
    archive: Path,
    folder: Path,
    accept: Callable[[Manifest], None],
    most_bytes: int | None = None,
) -> Manifest:
    """Extract into an empty `folder`, check every byte; returns the manifest.

    Args:
        accept: raises an exception to refuse the manifest; nothing is written before.
        most_bytes: refuse more than this, unpacked. By default a GiB, or 200 times the size of the
            archive if that is more.

    Raises:
        DamagedFileError: not such an archive, too large, or a file is missing, altered, listed
            twice or not listed; names the archive and the file.
        OSError: a file could not be written, e.g. on a full disk; names both.
    """
    with gzip.open(archive) as stream, contextlib.ExitStack() as stack:
        limited = _Limited(stream, archive)
        limited.allow(_HEADER)
        with _reading(archive):
            tar = stack.enter_context(tarfile.open(fileobj=limited, mode="r|"))  # type: ignore[call-overload]
            manifest = _first(archive, tar, limited)
        _check_names(archive, manifest)
        _check_sizes(archive, folder, manifest, most_bytes)
        accept(manifest)
        seen: set[str] = set()
        while (member := _next(archive, tar, limited)) is not None:
            _check_member(archive, member, manifest, seen)
            seen.add(member.name)
            limited.allow(member.size)
            if _extract(archive, tar, member, folder) != manifest.files[member.name].sha256:
                raise DamagedFileError(f"{_name(archive, member)}: altered, its hash is another")
        limited.allow(0)
        with _reading(archive):
            while limited.read(_CHUNK):  # gzip's checksum is behind the end of the tar file
                pass
    if missing := sorted(manifest.files.keys() - seen):
        raise DamagedFileError(f"{archive}: {shortened(missing[0], _WIDEST)}: missing")
    return manifest


def _name(archive: Path, member: tarfile.TarInfo) -> str:
    return f"{archive}: {shortened(member.name, _WIDEST)}"


def _next(archive: Path, tar: tarfile.TarFile, limited: _Limited) -> tarfile.TarInfo | None:
    tar.members = []  # type: ignore[attr-defined]  # or it keeps every header
    limited.allow(_HEADER)
    with _reading(archive):
        return tar.next()


def _first(archive: Path, tar: tarfile.TarFile, limited: _Limited) -> Manifest:
    member = tar.next()
    if member is None or member.name != MANIFEST or not member.isreg() or member.issparse():
        raise DamagedFileError(f"{archive}: does not begin with {MANIFEST}: not a whole bundle")
    if member.size > MANIFEST_BYTES:
        raise DamagedFileError(
            f"{archive}: {MANIFEST}: {member.size} bytes, more than {MANIFEST_BYTES}"
        )
    limited.allow(member.size)
    content = tar.extractfile(member)
    assert content is not None
    return read_manifest(content.read(), f"{archive}: {MANIFEST}")


def _check_names(archive: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        told = f"{archive}: {shortened(name, _WIDEST)}"
        if not _is_plain(name):
            raise DamagedFileError(f"{told}: not a relative path")
        if any(str(above) in manifest.files for above in PurePosixPath(name).parents):
            raise DamagedFileError(f"{told}: is in a folder that is listed as a file")


def _is_plain(name: str) -> bool:
    """Whether a name is a relative path that stays in its folder and is written one way only."""
    return (
        name != MANIFEST
        and name.isprintable()
        and "\\" not in name
        and len(name.encode()) <= 1000
        and all(p not in ("", ".", "..") and len(p.encode()) < 256 for p in name.split("/"))
    )


def _check_sizes(archive: Path, folder: Path, manifest: Manifest, most_bytes: int | None) -> None:
    total = sum(listed.size for listed in manifest.files.values())
    most = most_bytes or max(LEAST_BYTES, RATIO * archive.stat().st_size)
    if total > most:
        size, name = max((listed.size, name) for name, listed in manifest.files.items())
        raise DamagedFileError(
            f"{archive}: unpacks to {total} bytes ({shortened(name, _WIDEST)}: {size}), more than "
            f"{most}; if that is right, raise --max-gb"
        )
    if total > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{archive}: unpacks to {total} bytes, and {free} are free on the disk")


def _check_member(
    archive: Path, member: tarfile.TarInfo, manifest: Manifest, seen: Container[str]
) -> None:
    name, listed = _name(archive, member), manifest.files.get(member.name)
    if listed is None:
        raise DamagedFileError(f"{name}: not in the manifest")
    if member.name in seen:
        raise DamagedFileError(f"{name}: there twice")
    if not member.isreg() or member.issparse():
        raise DamagedFileError(f"{name}: not a plain file")
    if member.size != listed.size:
        raise DamagedFileError(f"{name}: altered, {member.size} bytes instead of {listed.size}")


def _extract(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> str:
    """Write a file in steps; returns its SHA-256."""
    hashed, path = hashlib.sha256(), folder / member.name
    content = tar.extractfile(member)
    assert content is not None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while data := _read(archive, content):
                hashed.update(data)
                file.write(data)
    except DamagedFileError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"{_name(archive, member)}: not written: {error}") from error
    return hashed.hexdigest()


def _read(archive: Path, content: IO[bytes]) -> bytes:
    with _reading(archive):
        return content.read(_CHUNK)
