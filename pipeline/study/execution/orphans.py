"""A stage ends with the process that asked for it, so that the next one finds the lock free.

DVC starts a stage through a shell. Some shells (bash) become the stage's process; others (dash, the
/bin/sh of Debian, which DVC takes where SHELL is not set) stay between the two and outlive a killed
DVC, and with them their child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOOK_EVERY_S = 0.2
_gone = threading.Event()


def die_with_parent() -> None:
    """From now on the death of this process's parent, or of the DVC behind the shell that is its
    parent, sends it SIGTERM. On Linux only: elsewhere a stage runs on to its end."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    shell = os.getppid()
    if "DVC_STAGE" in os.environ and _is_shell(shell):
        watch = threading.Thread(target=_watch, args=(shell, _parent_of(shell)), daemon=True)
        watch.start()


def dvc_is_gone() -> bool:
    """Whether the DVC that started this process through a shell has died."""
    return _gone.is_set()


def driver_is_gone() -> None:
    """To be called where the process that drives this stage has died: SIGTERM ends it at once."""
    _gone.set()


def _watch(shell: int, dvc: int) -> None:
    # A shell whose parent died is given another one.
    while _parent_of(shell) == dvc:
        time.sleep(LOOK_EVERY_S)
    _gone.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _is_shell(pid: int) -> bool:
    """Whether the process is a shell that runs one command given to it."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return Path(os.fsdecode(words[0])).name.endswith("sh") and b"-c" in words


def _parent_of(pid: int) -> int:
    """Its parent's number; 0 where there is no such process."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return 0
    return int(after_name.split()[1])
