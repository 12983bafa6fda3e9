"""A stage for the tests of the runner: writes its name, sleeps, fails, as its arguments say."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click


@click.command()
@click.option("--name", required=True)
@click.option("--seconds", type=float, default=0.0)
@click.option("--code", type=int, default=0)
@click.option("--variable", default="CUDA_VISIBLE_DEVICES")
def main(name: str, seconds: float, code: int, variable: str) -> None:
    Path(f"{name}.pid").write_text(str(os.getpid()))
    print(f"{name} runs")  # noqa: T201
    time.sleep(seconds)
    Path(name).write_text(os.environ.get(variable, "none"))
    raise SystemExit(code)
