"""Stages as processes of this machine, as many at once as it has cores or GPUs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue

from pipeline.runner.child import PRELOADED, run_stage
from pipeline.runner.task import Task
from pipeline.study import paths

log = logging.getLogger("espalier")
LOGS = Path(".checkpoints/logs")
SERVER_GONE = 255  # what multiprocessing reports of a child whose server was killed
MEMORY_PER_WORKER = 1.5e9  # bytes: a stage of a small network with torch loaded


class LocalEngine:
    """Runs up to `workers` tasks at once in children of one server process.

    Args:
        workers: how many tasks at once.
        gpus: one worker per GPU, each seeing its own through CUDA_VISIBLE_DEVICES; empty: CPU.
        threads: `compute.threads`; None: torch decides, as in a process of its own.
        where: first line of every log, which is then continued; "": every log begins anew.
    """

    resubmits = False

    def __init__(
        self,
        workers: int,
        gpus: tuple[int, ...] = (),
        threads: int | None = 1,
        where: str = "",
    ) -> None:
        self.workers, self._threads, self._where = workers, threads, where
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        # `run_stage` too: a child hears SIGTERM only once it runs that.
        self._context.set_forkserver_preload([run_stage.__module__, *PRELOADED])
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="stage")
        self._processes: dict[str, BaseProcess] = {}
        self._devices: SimpleQueue[int] = SimpleQueue()
        for gpu in gpus:
            self._devices.put(gpu)

    def __enter__(self) -> LocalEngine:
        # The server takes its environment when it starts, and its code from there: not from where
        # this process found its own.
        found = (str(paths.CODE), os.environ.get("PYTHONPATH", ""))
        values = {"PYTHONPATH": os.pathsep.join(filter(None, found))}
        with _environment(values | ({} if self._threads is None else {"OMP_NUM_THREADS": "1"})):
            with _ignored(signal.SIGTERM):  # inherited: a job that ends asks all its processes
                forkserver.ensure_running()
            self._check_preload()
        return self

    def __exit__(self, *error: object) -> None:
        self.each(BaseProcess.kill)
        self._pool.shutdown(wait=True)

    def submit(self, task: Task) -> Future[int]:
        """Exit code of the task once it has ended; negative: the signal that ended it."""
        return self._pool.submit(self._run, task)

    def stop(self) -> None:
        """Ask every running task to stop at its next checkpoint."""
        self.each(BaseProcess.terminate)

    def kill(self) -> None:
        """End every running task now."""
        self.each(BaseProcess.kill)

    def busy(self) -> bool:
        """Whether a task is running."""
        return any(process.is_alive() for process in list(self._processes.values()))

    def each(self, act: Callable[[BaseProcess], None]) -> None:
        """Apply `act` to all running processes."""
        for process in list(self._processes.values()):
            if process.is_alive():
                act(process)

    def _run(self, task: Task) -> int:
        device = None if self._devices.empty() else self._devices.get()
        environment = {"DVC_ROOT": str(Path.cwd()), "DVC_STAGE": task.name}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(device)
        process = self._context.Process(
            target=run_stage,
            args=(task.module, task.arguments, log_of(task.name), environment),
            name=task.name,
        )
        self._begin_log(log_of(task.name))
        process.start()
        self._processes[task.name] = process
        try:
            process.join()
            assert process.exitcode is not None
            return -signal.SIGKILL if process.exitcode == SERVER_GONE else process.exitcode
        finally:
            del self._processes[task.name]
            if device is not None:
                self._devices.put(device)

    def _begin_log(self, path: Path) -> None:
        if not self._where:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{self._where}\n")

    def _check_preload(self) -> None:
        """The server swallows the ImportError of a module that it cannot preload: every child would
        then import torch again, silently."""
        receiver, sender = self._context.Pipe(duplex=False)
        probe = self._context.Process(target=_preloaded, args=(sender, PRELOADED))
        probe.start()
        sender.close()
        missing = receiver.recv() if receiver.poll(120) else PRELOADED
        probe.join()
        if missing:
            log.warning("not preloaded, stages start slower: %s", ", ".join(missing))


def log_of(name: str) -> Path:
    """Where the output of a task goes."""
    return LOGS / f"{name}.log"


def _preloaded(sender: Connection, names: Sequence[str]) -> None:
    sender.send([name for name in names if name not in sys.modules])


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def usable_workers(threads: int | None) -> tuple[int, tuple[int, ...]]:
    """How many tasks this machine runs at once, and on which GPUs: one per GPU, else one per
    `threads` cores (None: one task, which uses all cores), no more than memory holds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = _gpu_count() if visible is None else len([d for d in visible.split(",") if d])
    if count:
        return count, tuple(range(count))
    if threads is None:
        return 1, ()
    cores = len(os.sched_getaffinity(0)) // threads
    memory = int(_free_memory() // MEMORY_PER_WORKER)
    return max(1, min(cores, memory)), ()


def _gpu_count() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _free_memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float("inf")
