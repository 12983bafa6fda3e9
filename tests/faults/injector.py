"""Faults drawn at random, injected into a tiny study, and what counts as having survived one:
`kill -9` of the driver, of a stage, of a chosen stage, of one process of a team; a disk that fills;
damaged and deleted files.

A fault is survived where the study then ends with the bytes of an undisturbed one, or refuses in
one line. What is never survived: other bytes, a traceback, a process that outlives its driver.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests import study

T = TypeVar("T")
RUN = (sys.executable, "-m", "pipeline.cli", "run", "--workers", "2")
RESULTS = ("reports/records", "reports/tables")
LONGEST_LINE = 900
STAGES = ("prepare-data", "train", "prune", "finetune", "evaluate", "sweep", "report")
TEAM = study.PARAMS + "compute: {processes: 2}\n"
DISK = 256 << 20  # bytes of the small file system
ROOM = 6 << 20  # bytes that are free there at most
DAMAGED = ("artifacts", "data/prepared", "reports/records", "reports/tables")


@dataclass(frozen=True)
class Verdict:
    """What was done to the study, and what came of it: "same", "refused", or what is wrong."""

    fault: str
    outcome: str

    @property
    def survived(self) -> bool:
        return self.outcome in ("same", "refused")


class Injector:
    """Copies of one finished study, each hit by one fault.

    Args:
        home: an empty folder for the study and its copies.
        seed: of everything that is drawn.
    """

    def __init__(self, home: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self._home, self._number = home, 0
        self.reference = study.create(home / "reference")
        began = time.monotonic()
        study.run(self.reference, *RUN)
        self.seconds = time.monotonic() - began
        self.expected = results(self.reference)

    def inject(self) -> Verdict:
        """One fault of a kind drawn at random, in a copy that is removed again."""
        kinds: list[Callable[[Path], str]] = [
            self.kill, self.kill_stage, self.kill_team, self.damage, self.lose
        ]  # fmt: skip
        if can_mount():
            kinds.append(self.fill)
        return self.apply(self.random.choice(kinds))

    def apply(self, kind: Callable[[Path], str]) -> Verdict:
        """One fault of this kind."""
        self._number += 1
        folder = self._home / f"copy-{self._number}"
        folder.mkdir()
        small = kind == self.fill and can_mount()
        try:
            if small:
                mount(folder)
            shutil.copytree(self.reference, folder, symlinks=True, dirs_exist_ok=True)
            fault = kind(folder)
            team = kind == self.kill_team
            return Verdict(fault, self._outcome(folder, self.of_team if team else self.expected))
        except Lost as lost:
            return Verdict(kind.__name__, str(lost))
        finally:
            if small:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)

    def kill(self, folder: Path) -> str:
        """`kill -9` of a run from scratch, or of one of its stages, at a random moment."""
        unrun(folder)
        process = subprocess.Popen(
            RUN, cwd=folder, env=study.environment(folder, cold=True),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        moment = self.random.uniform(0.5, self.seconds)
        time.sleep(moment)
        victim, stages = "driver", running(folder)
        if stages and self.random.random() < 0.5:
            victim, pid = self.random.choice(sorted(stages.items()))
            kill(pid)
            process.wait(300)
        process.kill()
        process.wait()
        for name in stages:
            study.wait_until_free(folder, name)
        return f"kill -9 of {victim} after {moment:.1f} s"

    def kill_stage(self, folder: Path) -> str:
        """`kill -9` of a chosen stage as soon as it runs, or a moment later."""
        unrun(folder)
        wanted = self.random.choice(STAGES)
        process = started(folder)
        pid = wait_for(process, lambda: next(
            (pid for name, pid in running(folder).items() if name.startswith(f"{wanted}@")), None
        ))  # fmt: skip
        moment = self.random.uniform(0.0, 0.6)
        time.sleep(moment)
        if pid is not None:
            kill(pid)
        process.wait(300)
        return f"kill -9 of {wanted} {moment:.1f} s after its start"

    def kill_team(self, folder: Path) -> str:
        """`kill -9` of one of the two processes of a training."""
        unrun(folder)
        (folder / "params.yaml").write_text(TEAM)
        process = started(folder)
        pids = wait_for(process, lambda: team(folder) if len(team(folder)) > 1 else None)
        moment = self.random.uniform(0.0, 3.0)
        time.sleep(moment)
        if pids:
            kill(self.random.choice(sorted(pids)))
        process.wait(300)
        if left := team(folder):
            for pid in left:
                kill(pid)
            raise Lost(f"processes {left} outlive the training")
        return f"kill -9 of one of {len(pids or ())} processes of a training after {moment:.1f} s"

    def fill(self, folder: Path) -> str:
        """A run from scratch on a disk that becomes full somewhere in it; then there is room."""
        unrun(folder)
        room = self.random.randrange(1 << 12, ROOM)
        ballast = folder / "ballast"
        size = shutil.disk_usage(folder).free - room
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        process = started(folder, subprocess.PIPE)
        said = process.communicate(timeout=540)[1]
        ballast.unlink()
        if "Traceback" in said:
            raise Lost(f"traceback on a full disk: {said[-300:]}")
        return f"a disk with room for {room / 1e6:.2f} MB, exit {process.returncode}"

    def damage(self, folder: Path) -> str:
        """A file is cut short, or one of its bytes changed."""
        file = self._file(folder)
        old = file.read_bytes()
        if self.random.random() < 0.5:
            new, how = old[: self.random.randrange(len(old))], "cut"
        else:
            at = self.random.randrange(len(old))
            new, how = old[:at] + bytes([old[at] ^ 0x55]) + old[at + 1 :], "changed"
        file.unlink()  # not through a link into DVC's cache
        file.write_bytes(new)
        return f"{how} {file.relative_to(folder)}"

    def lose(self, folder: Path) -> str:
        """A file is gone."""
        file = self._file(folder)
        file.unlink()
        return f"deleted {file.relative_to(folder)}"

    def _file(self, folder: Path) -> Path:
        files = [p for place in DAMAGED for p in (folder / place).rglob("*")
                 if p.is_file() and p.stat().st_size and "/events/" not in str(p)]  # fmt: skip
        return self.random.choice(sorted(files))

    @functools.cached_property
    def of_team(self) -> dict[str, bytes]:
        """The results of two processes, whose sums are rounded in another order."""
        folder = self._home / "team"
        shutil.copytree(self.reference, folder, symlinks=True)
        unrun(folder)
        (folder / "params.yaml").write_text(TEAM)
        study.run(folder, *RUN)
        return results(folder)

    def _outcome(self, folder: Path, expected: dict[str, bytes]) -> str:
        done = subprocess.run(
            RUN, cwd=folder, env=study.environment(folder), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=540, check=False,
        )  # fmt: skip
        if "Traceback" in done.stderr:
            return f"traceback: {done.stderr[-300:]}"
        if done.returncode:
            last = done.stderr.rstrip().splitlines()[-1:]
            return "refused" if last and len(last[0]) < LONGEST_LINE else "failed without a word"
        differ = [k for k, v in results(folder).items() if expected.get(k) != v]
        return "same" if not differ else f"other bytes: {', '.join(differ[:3])}"


class Lost(Exception):
    """What no fault may lead to."""


def started(folder: Path, messages: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A run of the study; a pipe for its messages must be read."""
    return subprocess.Popen(
        RUN, cwd=folder, env=study.environment(folder, cold=True), text=True,
        stdout=subprocess.DEVNULL, stderr=messages,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], found: Callable[[], T | None]) -> T | None:
    """What `found` returns, as soon as it is something; None where the process ends before."""
    while process.poll() is None:
        if (value := found()) is not None:
            return value
        time.sleep(0.02)
    return None


def team(folder: Path) -> list[int]:
    """Processes at work on a training of this study, without their launcher."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"stages.train" in words and (entry / "cwd").resolve() == folder.resolve():
                ranked = b"RANK=" in (entry / "environ").read_bytes()
                found += [int(entry.name)] if ranked else []
    return found


def can_mount() -> bool:
    """Whether this process may mount a small file system: root may, in most containers."""
    return sys.platform == "linux" and os.geteuid() == 0 and _mounts()


@functools.cache
def _mounts() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount(Path(folder))
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def mount(folder: Path) -> None:
    options = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True, capture_output=True)


def results(folder: Path) -> dict[str, bytes]:
    """What git keeps of a run."""
    return {f"{place}/{k}": v for place in RESULTS for k, v in study.tree(folder / place).items()}


def unrun(folder: Path) -> None:
    """As cloned: no results, nothing in DVC's cache."""
    for name in ("artifacts", "data", ".checkpoints", ".dvc/cache", "reports/records",
                 "reports/tables", "reports/plots"):  # fmt: skip
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("dvc.lock", "mlflow.db"):
        (folder / name).unlink(missing_ok=True)


def running(folder: Path) -> dict[str, int]:
    """Stages at work, with their processes."""
    found = {}
    for lock in (folder / ".checkpoints").glob("*.lock"):
        text = lock.read_text().strip()
        if text and Path(f"/proc/{text}").exists():
            found[lock.stem] = int(text)
    return found


def kill(pid: int) -> None:
    """`kill -9`, where the process has not ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
