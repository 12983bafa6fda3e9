"""Faults drawn at random, injected into a tiny study, and what counts as having survived one.

A fault is survived where the study then ends with the bytes of an undisturbed one, or refuses in
one line. What is never survived: other bytes, a traceback, a process that outlives its driver.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import study

RUN = (sys.executable, "-m", "pipeline.cli", "run", "--workers", "2")
RESULTS = ("reports/records", "reports/tables")
LONGEST_LINE = 900
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
        kinds: tuple[Callable[[Path], str], ...] = (self.kill, self.kill, self.damage, self.lose)
        return self.apply(self.random.choice(kinds))

    def apply(self, kind: Callable[[Path], str]) -> Verdict:
        """One fault of this kind."""
        self._number += 1
        folder = self._home / f"copy-{self._number}"
        shutil.copytree(self.reference, folder, symlinks=True)
        try:
            fault = kind(folder)
            return Verdict(fault, self._outcome(folder))
        finally:
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

    def _outcome(self, folder: Path) -> str:
        done = subprocess.run(
            RUN, cwd=folder, env=study.environment(folder), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=540, check=False,
        )  # fmt: skip
        if "Traceback" in done.stderr:
            return f"traceback: {done.stderr[-300:]}"
        if done.returncode:
            last = done.stderr.rstrip().splitlines()[-1:]
            return "refused" if last and len(last[0]) < LONGEST_LINE else "failed without a word"
        differ = [k for k, v in results(folder).items() if self.expected.get(k) != v]
        return "same" if not differ else f"other bytes: {', '.join(differ[:3])}"


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
