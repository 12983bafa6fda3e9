"""SIGTERM asks a training to stop at its next checkpoint; a second one ends it at once.

In a job of a cluster a second one changes nothing: Slurm asks every process of a job that ends, and
the worker asks its stage too. SIGKILL follows when the time that Slurm leaves is over.

A process whose parent or DVC died also gets SIGTERM (`orphans.die_with_parent`). The next
`dvc repro` needs its lock, so it ends at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from pipeline.study.execution.orphans import dvc_is_gone

STOPPED = 128 + signal.SIGTERM  # the exit code that a shell reports after SIGTERM
IN_JOB = "ESPALIER_IN_JOB"  # the variable that a cluster's worker sets for its stages


class StopRequest:
    """Handles SIGTERM until `close`. Outside the main thread it never receives one."""

    def __init__(self) -> None:
        self.asked = False
        self._parent = os.getppid()
        self._before: signal._HANDLER | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def obey(self) -> None:
        """Call this where stopping loses nothing.

        Raises:
            SystemExit: a stop was requested; the exit code is 143.
        """
        if self.asked:
            raise SystemExit(STOPPED)

    def close(self) -> None:
        """Restore the previous SIGTERM handler."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        again = self.asked and IN_JOB not in os.environ
        if again or os.getppid() != self._parent or dvc_is_gone():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True
