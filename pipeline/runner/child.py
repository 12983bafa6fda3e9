"""What happens in the process of one stage: a fork of a server that has imported torch already.

Each stage has its own process, signals, lock and random numbers, as under `dvc repro`; only the
imports are shared.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

from pipeline.study.execution.orphans import driver_is_gone

PRELOADED = ("torch", "numpy", "safetensors.torch", "pydantic", "stages.train", "stages.prune",
             "stages.finetune", "stages.evaluate", "stages.sweep",
             "pipeline.study.tracking.preload")  # fmt: skip


def run_stage(
    module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
) -> None:
    """Do what `python -m <module> <arguments>` does, in this process, with its output in `log`.
    Ends the process with its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which asks by SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    os.environ.update(environment)
    _redirect(log)
    importlib.import_module(module).main(args=list(arguments), prog_name=module)


def _end_with_driver() -> None:
    """The server that forked this process lives on while any child holds its pipe, so the death of
    the parent says nothing here: watch the driver itself."""
    driver = parent_process()
    assert driver is not None
    wait([driver.sentinel])
    driver_is_gone()
    os.kill(os.getpid(), signal.SIGTERM)


def _redirect(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
