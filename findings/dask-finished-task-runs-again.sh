#!/usr/bin/env bash
# distributed 2026.8.0 with dask 2026.8.0 (PyPI): a task that has finished, without an error, runs a second time when
# the worker that holds its result ends before the client has fetched it. Neither `allowed-failures: 0` nor
# `retries=0` forbids it, since neither counts this as a failure. A task with effects outside of its result (it trains
# a network, it writes files) has to keep track itself of whether it ran.
# Output seen: "finished; its worker ended; result: done; ran 2 times".
# Exits non-zero if it runs once.
set -euo pipefail
work=$(mktemp -d) && cd "$work" && trap 'rm -rf "$work"' EXIT
python3 -m venv v && v/bin/pip -q install dask==2026.8.0 distributed==2026.8.0
cat > task.py <<'P'
from pathlib import Path
import dask
from distributed import Client, LocalCluster, wait

def task(log):
    with open(log, "a") as file:
        file.write("ran\n")
    return "done"

if __name__ == "__main__":
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    settings = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        log = Path("log").resolve()
        future = client.submit(task, str(log), pure=False, retries=0)
        wait(future)
        (holder,) = client.who_has()[future.key]
        worker = next(w for w in cluster.workers.values() if w.worker_address == holder)
        cluster.sync(worker.kill)
        result, times = future.result(timeout=120), len(log.read_text().split())
        print(f"finished; its worker ended; result: {result}; ran {times} times")
        raise SystemExit(times != 2)
P
v/bin/python task.py 2>/dev/null
