"""End a stage when the process that started it dies, so that the next one finds the lock free.

DVC starts a stage through a shell. Some shells (bash) replace themselves by the stage. Others
(dash, Debian's /bin/sh, which DVC uses if SHELL is not set) stay as its parent; they and the stage
survive a killed DVC.
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
    """Send SIGTERM to this process when its parent dies, or the DVC whose shell is its parent.
    Linux only; on other systems a stage runs to its end."""
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
    """Call this when the driver of this stage has died: SIGTERM then ends the stage at once."""
    _gone.set()


def _watch(shell: int, dvc: int) -> None:
    # A shell whose parent died gets another parent.
    while _parent_of(shell) == dvc:
        time.sleep(LOOK_EVERY_S)
    _gone.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _is_shell(pid: int) -> bool:
    """Whether the process is a shell started with one command (`sh -c`)."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return Path(os.fsdecode(words[0])).name.endswith("sh") and b"-c" in words


def _parent_of(pid: int) -> int:
    """Pid of the process's parent; 0 if there is no such process."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return 0
    return int(after_name.split()[1])
