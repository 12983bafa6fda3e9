"""A stage ends when the process that started it dies, whichever shell is in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import study

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STAGE = """\
import os, sys, time
from pathlib import Path
from pipeline.study.execution.orphans import die_with_parent
from pipeline.study.execution.stopping import StopRequest
die_with_parent()
if sys.argv[2] == "listens":
    request = StopRequest()
told = Path(sys.argv[1])
told.with_suffix(".tmp").write_text(str(os.getpid()))
told.with_suffix(".tmp").rename(told)
time.sleep(300)
"""
ASKING = """\
import os, subprocess, sys
environment = dict(os.environ)
if sys.argv[1] == "dvc":
    environment["DVC_STAGE"] = "train@a"
subprocess.run(sys.argv[2:], env=environment)
"""


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def started(tmp_path: Path, who: str, how: str, *, shell_stays: bool) -> tuple[int, int]:
    """The numbers of the process that asked and of the stage."""
    told = tmp_path / "pid"
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    command = f"{sys.executable} {script} {told} {how}"
    shell = ["/bin/sh", "-c", f"{command}; true" if shell_stays else f"exec {command}"]
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKING, who, *shell],
        env=study.environment(study.REPOSITORY, cold=True),
        cwd=study.REPOSITORY,
    )
    while not told.exists():
        assert asking.poll() is None, "it ended before the stage began"
        time.sleep(0.02)
    os.kill(asking.pid, signal.SIGKILL)
    asking.wait()
    return asking.pid, int(told.read_text())


@pytest.mark.parametrize("how", ["listens", "does not listen"])
@pytest.mark.parametrize("shell_stays", [True, False])
def test_a_killed_dvc_leaves_no_stage_behind(tmp_path: Path, how: str, shell_stays: bool) -> None:
    _, stage = started(tmp_path, "dvc", how, shell_stays=shell_stays)
    for _ in range(3000):
        if not alive(stage):
            return
        time.sleep(0.02)
    os.kill(stage, signal.SIGKILL)
    raise AssertionError("the stage outlived DVC")


def test_a_shell_of_a_persons_own_may_lose_its_parent(tmp_path: Path) -> None:
    _, stage = started(tmp_path, "person", "listens", shell_stays=True)
    time.sleep(1.0)
    assert alive(stage), "a script started in the background ended with the terminal's shell"
    os.kill(stage, signal.SIGKILL)
