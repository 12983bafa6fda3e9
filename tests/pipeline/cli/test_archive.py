"""Archives made to do harm, and damaged ones: refused by name, before anything is written."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import archive as archives
from pipeline.cli.archive import MANIFEST, Manifest, below, pack, unpack
from pipeline.files import DamagedFileError

Member = tuple[tarfile.TarInfo, bytes]


def made(folder: Path) -> Path:
    for name, text in (("a/one", "1"), ("a/two", "22")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    files = {n: folder / n for n in ("a/one", "a/two")}
    pack(folder / "x.tar.gz", {"study": "s", "ask": {}}, files, {})
    return folder / "x.tar.gz"


def members_of(archive: Path) -> list[Member]:
    with tarfile.open(archive) as tar:
        return [(m, tar.extractfile(m).read()) for m in tar.getmembers()]


def written(archive: Path, members: list[Member]) -> Path:
    out = archive.with_name("changed.tar.gz")
    with tarfile.open(out, "w:gz") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return out


def changed(archive: Path, change: Callable[[list[Member]], None]) -> Path:
    members = members_of(archive)
    change(members)
    return written(archive, members)


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Member:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, "a/one"
    return member, data


def manifest(change: Callable[[dict], object]) -> Callable[[list[Member]], None]:
    """A change of the manifest, which stays the first member."""

    def rewrite(members: list[Member]) -> None:
        found = json.loads(members[0][1])
        members[0] = entry(MANIFEST, json.dumps(change(found) or found).encode())

    return rewrite


def listing(name: str) -> Callable[[list[Member]], None]:
    """The manifest and the archive agree on one more file of this name."""

    def rewrite(members: list[Member]) -> None:
        manifest(lambda m: m["files"].update({name: m["files"]["a/one"]}))(members)
        members.append(entry(name, b"1"))

    return rewrite


def accepted(found: Manifest) -> None:
    """Any manifest is."""


def refused(archive: Path, out: Path, **settings) -> str:
    """The message; nothing may have been written before the fault, or after it."""
    out.mkdir()
    with pytest.raises(DamagedFileError) as error:
        unpack(archive, out, accepted, **settings)
    assert str(error.value).startswith(f"{archive}: ")
    assert len(str(error.value)) < 600
    return str(error.value)


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    found = unpack(made(tmp_path / "in"), tmp_path / "out", accepted)
    assert (found.study, found.finished) == ("s", None)
    assert (tmp_path / "out/a/two").read_text() == "22"


def test_what_a_killed_write_left_is_not_packed(tmp_path: Path) -> None:
    for name in ("a/last.safetensors", "a/.last.safetensors.12.tmp", "a/__pycache__/x.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert below(tmp_path, tmp_path) == {"a/last.safetensors": tmp_path / "a/last.safetensors"}


def test_links_to_one_file_in_the_cache_of_dvc_are_two_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    archive = made(folder)
    os.link(folder / "a/one", folder / "a/hard")
    (folder / "a/soft").symlink_to(folder / "a/one")
    files = {n: folder / n for n in ("a/one", "a/hard", "a/soft")}
    pack(archive, {"study": "s", "ask": {}}, files, {})
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out", accepted)
    assert {p.name: p.read_text() for p in (tmp_path / "out/a").iterdir()} == {
        "one": "1", "hard": "1", "soft": "1",
    }  # fmt: skip


FAULTS: dict[str, tuple[Callable[[list[Member]], object], str]] = {
    "altered": (lambda m: m.append((m.pop(1)[0], b"9")), "a/one: altered, its hash"),
    "longer": (lambda m: m.append(entry(m.pop(1)[0].name, b"11")), "a/one: altered, 2 bytes"),
    "added": (lambda m: m.append(entry("a/three", b"3")), "a/three: not in the manifest"),
    "removed": (lambda m: m.pop(), "a/two: missing"),
    "twice": (lambda m: m.append(m[1]), "a/one: there twice"),
    "outside": (listing("../b"), "../b: not a relative path"),
    "within, outside": (listing("a/../../b"), "a/../../b: not a relative path"),
    "absolute": (listing("/tmp/b"), "/tmp/b: not a relative path"),
    "dot": (listing("a/./b"), "not a relative path"),
    "empty part": (listing("a//b"), "not a relative path"),
    "backslash": (listing("a\\b"), "not a relative path"),
    "line break": (listing("a/b\nc"), "not a relative path"),
    "long name": (listing("a/" + "b" * 300), "not a relative path"),
    "file and folder": (listing("a/one/b"), "a/one/b: is in a folder that is listed as a file"),
    "manifest again": (listing(MANIFEST), "not a relative path"),
    "symbolic link": (lambda m: m.append(entry(m.pop()[0].name, kind=tarfile.SYMTYPE)),
                      "a/two: not a plain file"),
    "hard link": (lambda m: m.append(entry(m.pop()[0].name, kind=tarfile.LNKTYPE)),
                  "a/two: not a plain file"),
    "pipe": (lambda m: m.append(entry(m.pop()[0].name, kind=tarfile.FIFOTYPE)),
             "a/two: not a plain file"),
    "device": (lambda m: m.append(entry(m.pop()[0].name, kind=tarfile.CHRTYPE)),
               "a/two: not a plain file"),
    "folder": (lambda m: m.append(entry(m.pop()[0].name, kind=tarfile.DIRTYPE)),
               "a/two: not a plain file"),
    "manifest last": (lambda m: m.append(m.pop(0)), "does not begin with bundle.json"),
    "no manifest": (lambda m: m.pop(0), "does not begin with bundle.json"),
    "empty": (lambda m: m.clear(), "not a whole bundle"),
    "no JSON": (lambda m: m.insert(0, entry(m.pop(0)[0].name, b"{")), "bundle.json: Invalid JSON"),
    "nested JSON": (lambda m: m.insert(0, entry(m.pop(0)[0].name, b"[" * 10**5)), "bundle.json: "),
    "a list": (lambda m: m.insert(0, entry(m.pop(0)[0].name, b"[1]")), "bundle.json: "),
    "null": (lambda m: m.insert(0, entry(m.pop(0)[0].name, b"null")), "bundle.json: "),
    "no format": (manifest(lambda m: {k: v for k, v in m.items() if k != "format"}),
                  "bundle.json: format: Field required"),
    "format 1": (manifest(lambda m: m.update(format=1)), "bundle.json: format: "),
    "format 3": (manifest(lambda m: m.update(format=3)), "of another version? Export it again"),
    "format 2.0": (manifest(lambda m: m.update(format=2.0)), "bundle.json: format: "),
    "format true": (manifest(lambda m: m.update(format=True)), "bundle.json: format: "),
    "finished: 5": (manifest(lambda m: m.update(finished=5)), "bundle.json: finished: "),
    "finished: text": (manifest(lambda m: m.update(finished="ab")), "bundle.json: finished: "),
    "finished: [5]": (manifest(lambda m: m.update(finished=[5])), "bundle.json: finished.0: "),
    "ask: null": (manifest(lambda m: m.update(ask=None)), "bundle.json: ask: "),
    "ask: no hash": (manifest(lambda m: m.update(ask={"a": "x"})), "bundle.json: ask.a: "),
    "study: 1": (manifest(lambda m: m.update(study=1)), "bundle.json: study: "),
    "files: a list": (manifest(lambda m: m.update(files=[])), "bundle.json: files: "),
    "files: a hash": (manifest(lambda m: m["files"].update({"a/one": "0" * 64})),
                      "bundle.json: files.a/one: "),
    "a negative size": (manifest(lambda m: m["files"]["a/one"].update(size=-1)),
                        "bundle.json: files.a/one.size: "),
    "a size of NaN": (manifest(lambda m: m["files"]["a/one"].update(size=float("nan"))),
                      "bundle.json: files.a/one.size: "),
    "an unknown key": (manifest(lambda m: m.update(more=1)), "bundle.json: more: "),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hostile_archive_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    change, told = FAULTS[fault]
    archive = changed(made(tmp_path / "in"), change)
    assert told in refused(archive, tmp_path / "out")
    assert not (tmp_path / "b").exists()


def test_a_name_cannot_hide_behind_its_length(tmp_path: Path) -> None:
    """Two long headers agree on a file whose name is longer than any message."""
    archive = changed(made(tmp_path / "in"), lambda m: m.append(entry("a/" + "b" * 10_000, b"1")))
    assert "not in the manifest" in refused(archive, tmp_path / "out")


def test_a_sparse_file_is_no_plain_file(tmp_path: Path) -> None:
    """Its header alone claims the bytes, which no archive has to contain."""

    def sparse(members: list[Member]) -> None:
        member, data = members.pop()
        member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1",
                              "GNU.sparse.map": "0,1", "GNU.sparse.size": "2"}  # fmt: skip
        members.append((member, data))

    archive = changed(made(tmp_path / "in"), sparse)
    assert "a/two: not a plain file" in refused(archive, tmp_path / "out")


def test_a_small_archive_of_a_large_size_is_refused_before_writing(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    made(folder)
    (folder / "a/zeros").write_bytes(bytes(100_000))
    pack(folder / "x.tar.gz", {"study": "s", "ask": {}}, {"a/zeros": folder / "a/zeros"}, {})
    assert (folder / "x.tar.gz").stat().st_size < 2000
    told = refused(folder / "x.tar.gz", tmp_path / "out", most_bytes=50_000)
    assert "unpacks to 100000 bytes (a/zeros: 100000), more than 50000" in told
    assert not list((tmp_path / "out").iterdir())


def test_the_default_bound_is_a_multiple_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LEAST_BYTES", 100)
    archive = changed(
        made(tmp_path / "in"), manifest(lambda m: m["files"]["a/two"].update(size=10**9))
    )
    told = refused(archive, tmp_path / "out")
    assert f"more than {archives.RATIO * archive.stat().st_size}" in told


def test_a_disk_too_small_is_refused_before_writing(tmp_path: Path) -> None:
    archive = changed(
        made(tmp_path / "in"), manifest(lambda m: m["files"]["a/two"].update(size=1 << 59))
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match=r"changed\.tar\.gz: unpacks to \d+ bytes, and \d+ are free"):
        unpack(archive, tmp_path / "out", accepted, most_bytes=1 << 60)
    assert not list((tmp_path / "out").iterdir())


def test_a_large_manifest_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MANIFEST_BYTES", 1000)
    archive = changed(made(tmp_path / "in"), manifest(lambda m: m.update(study="x" * 1000)))
    assert f"{MANIFEST}: " in (told := refused(archive, tmp_path / "out"))
    assert "more than 1000" in told


@pytest.mark.parametrize("place", ["in a header", "behind the end"])
def test_nothing_is_decompressed_beyond_the_manifest(tmp_path: Path, place: str) -> None:
    """Headers and padding are no place for what the manifest does not list."""
    archive = made(tmp_path / "in")
    if place == "in a header":

        def wordy(members: list[Member]) -> None:
            members[1][0].pax_headers = {"comment": "x" * 200_000}

        archive = changed(archive, wordy)
    else:
        data = gzip.decompress(archive.read_bytes())
        archive.write_bytes(gzip.compress(data + bytes(200_000)))
    assert "unpacks to more than its manifest lists" in refused(archive, tmp_path / "out")


@pytest.mark.parametrize("missing", [1, 8, 40, 200])
def test_a_shortened_archive_is_refused(tmp_path: Path, missing: int) -> None:
    archive = made(tmp_path / "in")
    archive.write_bytes(archive.read_bytes()[:-missing])
    assert "not a whole bundle" in refused(archive, tmp_path / "out")


# Not in the zeros at the end: another byte there may copy other zeros, which is no damage.
@pytest.mark.parametrize("place", [-1, -8, 0, 30])
def test_an_altered_byte_is_refused(tmp_path: Path, place: int) -> None:
    archive = made(tmp_path / "in")
    data = bytearray(archive.read_bytes())
    data[place] ^= 0x5A
    archive.write_bytes(data)
    refused(archive, tmp_path / "out")


def test_a_refused_manifest_leaves_nothing(tmp_path: Path) -> None:
    def refuse(found: Manifest) -> None:
        raise ValueError(f"not {found.study}")

    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="not s"):
        unpack(made(tmp_path / "in"), tmp_path / "out", refuse)
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, opened = made(tmp_path / "in"), Path.open

    def full(path: Path, mode: str = "r", *more):
        if path.name == "two":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *more)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"x\.tar\.gz: a/two: not written: .*No space left") as error:
        unpack(archive, tmp_path / "out", accepted)
    assert error.value.errno == errno.ENOSPC
