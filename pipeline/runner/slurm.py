"""Stages in jobs of Slurm: dask-jobqueue submits workers, one job each, and replaces lost ones.

A worker stays for as many stages as its time allows, so a short stage does not wait in the queue
and does not import torch. Connections are encrypted: whoever reaches a scheduler can run code in
it.
Settings of dask-jobqueue that `compute.cluster` lacks (network interface, prologue of the job) are
those of `~/.config/dask/jobqueue.yaml`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from time import monotonic, time_ns
from typing import Any

from pipeline.runner.cluster_worker import forget, kill_here, run_here, stop_here
from pipeline.runner.local import LOGS, log_of
from pipeline.runner.task import NEVER_BEGAN, Task
from pipeline.study.execution.stopping import STOPPED
from pipeline.study.params.schema import ClusterParams

log = logging.getLogger("espalier")
WORKER = "pipeline.runner.cluster_worker"
JOB_LOGS = LOGS / "slurm"
LOOK_EVERY_S = 5.0
LOST_AFTER_S = 2.0
JOBS_IN_VAIN = 5
HERE_ONLY = "127.0.0.1:0"  # dask serves plain HTTP even without its dashboard
SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # the driver decides what starts again
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.comm.timeouts.connect": "60s",
}


class ClusterError(RuntimeError):
    """Slurm does not run our jobs; says why."""


@dataclass(frozen=True)
class _Running:
    inner: Future[int]  # dask's
    outer: Future[int]  # the driver's
    log_size: int  # before it began


class SlurmEngine:
    """Runs up to `workers` tasks at once, each in a job.

    Args:
        settings: what a job asks for.
        workers: jobs at once; None: `settings.jobs`.
        threads: `compute.threads`; None: as many as a job has cores.

    Raises:
        ClusterError: no sbatch, or Slurm refuses such a job.
    """

    resubmits = True

    def __init__(
        self, settings: ClusterParams, workers: int | None = None, threads: int | None = None
    ) -> None:
        self.workers = workers or settings.jobs
        self._settings, self._threads = settings, threads or settings.cores
        self._tasks: dict[str, _Running] = {}
        self._begun: set[str] = set()
        self._broken: ClusterError | None = None
        self._closed = threading.Event()

    def __enter__(self) -> SlurmEngine:
        import dask
        from dask_jobqueue import SLURMCluster
        from distributed import Client

        JOB_LOGS.mkdir(parents=True, exist_ok=True)
        lost = {"distributed.deploy.lost-worker-timeout": f"{LOST_AFTER_S}s"}
        self._config = dask.config.set(SETTINGS | lost)
        self._config.__enter__()
        self._cluster: Any = SLURMCluster(**self._job())
        try:
            _check(self._cluster.job_script())
            self._client: Any = Client(self._cluster)
            # A tiny duration: a worker for every task, however short dask takes it to be.
            self._cluster.adapt(
                minimum=0, maximum=self.workers, interval="1s", wait_count=60,
                target_duration="1ms",
            )  # fmt: skip
            self._executor = self._client.get_executor(pure=False)
        except BaseException:
            self._close_cluster()
            raise
        threading.Thread(target=self._watch, name="slurm", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._client.close()
        self._close_cluster()
        self._config.__exit__(None, None, None)

    def _close_cluster(self) -> None:
        self._cluster.close()  # cancels every job
        for name in ("ca_file", "cert", "key"):  # keys for the workers, which dask leaves there
            getattr(self._cluster, f"_job_{name}").close()

    def submit(self, task: Task) -> Future[int]:
        """Exit code of the task; negative: ended by this signal, with its job or without.
        `NEVER_BEGAN`: its job ended while it waited for the task before it."""
        if task.name not in self._begun:
            log_of(task.name).unlink(missing_ok=True)
            forget(task.name)
            self._begun.add(task.name)
        outer: Future[int] = Future()
        inner: Future[int] = self._executor.submit(run_here, task, time_ns())
        self._tasks[task.name] = _Running(inner, outer, _size(log_of(task.name)))
        inner.add_done_callback(lambda _: self._settle(task.name))
        return outer

    def stop(self) -> None:
        """Ask every running task to stop at its next checkpoint; drop those that wait for a job."""
        for name, running in list(self._tasks.items()):
            if not self._has_begun(name):
                running.inner.cancel()
        self._on_workers(stop_here)

    def kill(self) -> None:
        """End every running task now."""
        for running in list(self._tasks.values()):
            running.inner.cancel()
        self._on_workers(kill_here)

    def _on_workers(self, act: Callable[[], None]) -> None:
        if self._tasks:
            self._client.run(act, on_error="ignore")

    def _has_begun(self, name: str) -> bool:
        return _size(log_of(name)) > self._tasks[name].log_size

    def _settle(self, name: str) -> None:
        from distributed.scheduler import KilledWorker

        running = self._tasks[name]
        try:
            code = running.inner.result()
        except CancelledError:
            code = STOPPED
        except KilledWorker:
            code = -SIGKILL if self._has_begun(name) else NEVER_BEGAN
        except Exception as error:  # of the worker, e.g. a full disk: else the driver would wait
            log.warning("%s: its worker failed: %r", name, error)
            code = -SIGKILL
        del self._tasks[name]
        if not running.outer.done():
            running.outer.set_result(code)

    def _job(self) -> dict[str, Any]:
        """Arguments of dask-jobqueue's SLURMCluster."""
        wanted = self._settings
        more = [f"--gres=gpu:{wanted.gpus}"] if wanted.gpus else []
        begin = [f"export ESPALIER_CLUSTER_THREADS={self._threads}"]
        if wanted.nodes > 1:
            more += [f"--nodes={wanted.nodes}", "--ntasks-per-node=1"]
            begin.append(f"export ESPALIER_NODES={wanted.nodes}")
        return {
            "queue": wanted.partition, "account": wanted.account, "walltime": wanted.time,
            "cores": wanted.cores, "memory": wanted.memory, "processes": 1,
            "job_extra_directives": [*more, *wanted.extra], "job_name": "espalier",
            "job_directives_skip": ["-n 1"] if wanted.nodes > 1 else [],
            "job_script_prologue": begin,
            "log_directory": str(JOB_LOGS), "python": sys.executable,
            "worker_command": WORKER,
            "worker_extra_args": [
                "--no-nanny", "--nthreads 1", "--memory-limit 0",
                f"--dashboard-address {HERE_ONLY}",
            ],
            "security": True, "protocol": "tls://",
            "shared_temp_directory": str(JOB_LOGS.resolve()),
            "scheduler_options": {"dashboard": False, "dashboard_address": HERE_ONLY},
        }  # fmt: skip

    def _watch(self) -> None:
        """dask replaces a lost worker, but never notices that a job ended before its worker
        connected: cancelled in the queue, or without Python on its node."""
        in_vain, gone_since = 0, dict[str, float]()
        while in_vain < JOBS_IN_VAIN:
            if self._closed.wait(LOOK_EVERY_S):
                return
            jobs = {job.job_id: name for name, job in dict(self._cluster.workers).items()}
            queued = _queue()
            if queued is None:
                continue
            connected = {w["name"] for w in self._cluster.scheduler_info["workers"].values()}
            in_vain = 0 if connected else in_vain
            gone = {n for n, name in jobs.items() if n not in queued and name not in connected}
            gone_since = {n: gone_since.get(n, monotonic()) for n in gone}
            for number, since in gone_since.items():
                if monotonic() - since < 2 * LOST_AFTER_S:  # else it is dask that replaces it
                    continue
                in_vain += 1
                log.warning(
                    "job %s ended before its worker was there: another is asked for", number
                )
                self._cluster.loop.add_callback(self._cluster.workers.pop, jobs[number], None)
        self._give_up(in_vain)

    def _give_up(self, jobs: int) -> None:
        said = f"{jobs} jobs in a row ended before their worker was there: see {JOB_LOGS}"
        for running in list(self._tasks.values()):
            running.outer.set_exception(ClusterError(said))


def _check(script: str) -> None:
    """
    Raises:
        ClusterError: Slurm would not take such a job; what it says.
    """
    try:
        done = subprocess.run(
            ("sbatch", "--test-only"), input=script, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        raise ClusterError(
            "--engine slurm: there is no sbatch here: run it on a login node"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ClusterError(f"params.yaml: compute.cluster: Slurm refuses such a job: {said}")


def _queue() -> set[str] | None:
    """Ids of this user's jobs; None: Slurm does not answer now."""
    command = ("squeue", "--me", "--noheader", "--format=%i")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return set(done.stdout.split()) if done.returncode == 0 else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
