"""A stage that trains nothing, but has checkpoints, resumes, stops and writes a record as a
training does: its record depends on every epoch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

import click

from pipeline.study.execution.stopping import StopRequest


def record(name: str, epochs: int) -> Path:
    return Path("records") / f"{name}-{epochs}.json"


def checkpoint(name: str) -> Path:
    return Path(".checkpoints/train") / name / "last.json"


def digest_of(epochs: int) -> str:
    """What an undisturbed run of so many epochs records."""
    digest = ""
    for epoch in range(epochs):
        digest = _next(digest, epoch)
    return digest


def _next(digest: str, epoch: int) -> str:
    return hashlib.sha256(f"{digest} {epoch}".encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """As `pipeline.files.write_json`, without torch: children of these tests begin in 50 ms."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(value))
    half.replace(path)


@click.command()
@click.option("--name", required=True)
@click.option("--epochs", type=int, default=30)
@click.option("--fail-at", type=int, default=-1)
@click.option("--forget", is_flag=True, help="write no checkpoint")
def main(name: str, epochs: int, fail_at: int, forget: bool) -> None:
    stop = StopRequest()
    checkpoint(name).parent.mkdir(parents=True, exist_ok=True)
    lock = Path(f".checkpoints/{os.environ['DVC_STAGE']}.lock").open("a")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as a real stage: one process at a time
    epoch, digest = 0, ""
    if checkpoint(name).exists():
        epoch, digest = json.loads(checkpoint(name).read_text())
        print(f"resumed at {epoch}", flush=True)  # noqa: T201
    (checkpoint(name).parent / "job").write_text(os.environ.get("SLURM_JOB_ID", ""))
    while epoch < epochs:
        time.sleep(0.1)
        if epoch == fail_at:
            raise SystemExit(3)
        epoch, digest = epoch + 1, _next(digest, epoch)
        if not forget:
            write_json(checkpoint(name), [epoch, digest])
        print(f"epoch {epoch}/{epochs} {0.1 * (epochs - epoch):.0f} s left", flush=True)  # noqa: T201
        if stop.asked:
            print(f"stops at {epoch}", flush=True)  # noqa: T201
        stop.obey()
    record(name, epochs).parent.mkdir(exist_ok=True)
    write_json(record(name, epochs), {"epochs": epochs, "digest": digest})
