"""Inside a job of a cluster: a dask worker that runs one stage after another, as children of a
forkserver that has imported torch, like those of `espalier run` on one machine.

`python -m pipeline.runner.cluster_worker <arguments of dask worker>`
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGTERM

from pipeline.runner.local import LOGS, LocalEngine
from pipeline.runner.task import Task
from pipeline.study.execution.stopping import IN_JOB

BEGUN = LOGS / "slurm" / "begun"
PATIENCE_S = 120.0  # for a stage to reach its next checkpoint when its job ends
_engine: LocalEngine | None = None


def run_here(task: Task, attempt: int) -> int:
    """Run a task in this job; returns its exit code, negative: the signal that ended it.

    dask calls this again, elsewhere, when a worker leaves before its result was fetched. The driver
    decides what starts again, so the same `attempt` never runs twice: its exit code is returned, or
    SIGTERM where it left none.
    """
    assert _engine is not None, "no worker of this module"
    begun = claim(task.name, attempt)
    if begun is None:
        return code_of(task.name, attempt)
    wait_until_free(task.name)
    code = _engine.submit(task).result()
    half = begun.with_suffix(".half")
    half.write_text(str(code))
    half.replace(begun)  # whole, whoever reads it meanwhile
    return code


def claim(name: str, attempt: int) -> Path | None:
    """The file that says that this attempt at a task has begun, and holds its exit code once it has
    ended. None: it had begun before, or a later one has. Attempts are numbered in order of time."""
    path = _begun(name, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = [p for p in path.parent.iterdir() if p.name.isdigit()]  # NFS adds .nfs files
    if any(int(other.name) >= attempt for other in earlier):
        return None
    try:
        path.open("x").close()
    except FileExistsError:  # in another job, at this moment
        return None
    for old in earlier:
        old.unlink(missing_ok=True)
    return path


def forget(name: str) -> None:
    """Drop what earlier runs left of a task: the clock that numbered its attempts may be ahead."""
    shutil.rmtree(BEGUN / name, ignore_errors=True)


def code_of(name: str, attempt: int) -> int:
    """Exit code of an attempt that had begun before."""
    path = _begun(name, attempt)
    written = path.read_text() if path.exists() else ""
    return int(written) if written else -SIGTERM


def _begun(name: str, attempt: int) -> Path:
    return BEGUN / name / str(attempt)


def stop_here() -> None:
    """Ask the running task to stop at its next checkpoint."""
    if _engine is not None:
        _engine.stop()


def kill_here() -> None:
    """End the running task now."""
    if _engine is not None:
        _engine.kill()


def wait_until_free(name: str, patience: float = PATIENCE_S) -> None:
    """Until the lock of a stage is free: in a job that Slurm ends, the same stage may still be
    writing its last checkpoint."""
    path = Path(".checkpoints") / f"{name}.lock"
    if not path.exists():
        return
    end = time.monotonic() + patience
    with path.open("a") as lock:
        while time.monotonic() < end:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.2)
            else:
                return


def serve(arguments: list[str]) -> None:
    """Load torch, then work for the scheduler until it or the job ends. Does not return."""
    global _engine
    from distributed.cli.dask_worker import main

    threads = int(os.environ["ESPALIER_CLUSTER_THREADS"])
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ[IN_JOB] = "1"
    _engine = LocalEngine(1, threads=None, where=whereabouts(os.environ))
    _engine.__enter__()
    try:
        main(args=[*arguments, "--preload", __name__], prog_name="dask worker")
    finally:
        _leave()


def dask_teardown(_worker: object) -> None:
    """dask calls this when the worker closes because the driver or the job ends."""
    threading.Thread(target=_leave, daemon=True).start()


def _leave() -> None:
    """End the process once its stage has stopped at a checkpoint. The command of distributed 2026.8
    may hang in its event loop when the worker has closed."""
    assert _engine is not None
    _engine.stop()
    end = time.monotonic() + PATIENCE_S
    while _engine.busy() and time.monotonic() < end:
        time.sleep(0.1)
    os._exit(0)  # a stage that is still running sees it and ends at once


def whereabouts(environment: Mapping[str, str]) -> str:
    """Node and job, for the first line of a log."""
    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    return f"on {node}, job {environment.get('SLURM_JOB_ID', '?')}"


def _start() -> None:
    # Under `python -m` this file is __main__; dask finds the functions above in the module itself.
    importlib.import_module("pipeline.runner.cluster_worker").serve(sys.argv[1:])


if __name__ == "__main__":
    _start()
