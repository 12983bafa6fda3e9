"""An ssh remote of DVC: a real sshd on loopback; one clone pushes, another pulls."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import free_ports, until
from tests.studies import warm

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None or os.geteuid() != 0, reason="no sshd that we may start"),
    pytest.mark.skipif(importlib.util.find_spec("dvc_ssh") is None, reason="no dvc-ssh"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Host and port of an sshd that accepts one key, and the key."""
    for name in ("host", "user"):
        new = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
        subprocess.run(new, check=True)
    (port,) = free_ports(1)
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "user.pub", "StrictModes": "no", "UsePAM": "no",
        "PermitRootLogin": "prohibit-password", "PidFile": "none",
        "Subsystem": "sftp internal-sftp",
    }  # fmt: skip
    (tmp_path / "sshd_config").write_text("\n".join(f"{k} {v}" for k, v in settings.items()))
    assert SSHD is not None
    with (tmp_path / "sshd.log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=log)
    until(lambda: b"listening" in (tmp_path / "sshd.log").read_bytes(), "sshd")
    yield f"127.0.0.1:{port}", tmp_path / "user"
    process.kill()
    process.wait()


def test_a_clone_pulls_what_another_pushed(tmp_path, server):
    address, key = server
    one, store = tmp_path / "one", tmp_path / "store"
    one.mkdir()

    environment = os.environ | {"HOME": str(tmp_path), "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{warm.folder(environment)}{os.pathsep}{environment['PATH']}"

    def call(folder: Path, *command: str) -> None:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    call(one, "git", "init", "-q")
    call(one, "dvc", "init", "-q")
    (one / "weights.bin").write_bytes(bytes(range(256)) * 4096)
    call(one, "dvc", "add", "-q", "weights.bin")
    call(one, "dvc", "remote", "add", "-q", "-d", "store", f"ssh://root@{address}{store}")
    call(one, "dvc", "remote", "modify", "--local", "store", "keyfile", str(key))
    call(one, "dvc", "push", "-q")
    assert sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) == 2**20
    two = tmp_path / "two"
    shutil.copytree(one, two, ignore=shutil.ignore_patterns("cache", "tmp", "weights.bin"))
    call(two, "dvc", "pull", "-q")
    assert (two / "weights.bin").read_bytes() == (one / "weights.bin").read_bytes()
