"""Facts about this process that no record may hold: host, versions, git commit, live processes."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine_facts() -> dict[str, str]:
    """Tags of a run: host, platform, cores, versions of numeric libraries, git commit."""
    facts = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "git_commit": git_commit(),
    }
    for package in ("torch", "torchvision"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return facts


def git_commit() -> str:
    """HEAD, with the suffix "-dirty" if tracked files differ; "none" outside a git repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.strip()


def owner() -> str:
    """Identifies this process by host, pid and start time, so that a reused pid differs."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_dead(who: str) -> bool:
    """Whether `who` was a process of this host that has ended. Unknown (False) for other hosts."""
    host, _, process = who.partition(":")
    pid, _, started = process.partition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    return _started(int(pid)) != started


def _started(pid: int) -> str:
    """Start time of `pid` in clock ticks since boot; "gone" if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "gone" if Path("/proc/self").exists() else _alive(pid)
    state, *fields = stat.rpartition(")")[2].split()
    return "gone" if state == "Z" else fields[18]


def _alive(pid: int) -> str:
    """Without /proc (macOS) only the pid is checked."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        return "alive"
    return "alive"
