"""Inject faults for some minutes: `python -m tests.faults --minutes 30 [--seed 7]` (`make faults`).

Prints one line per fault and, at the end, survived / tried. The exit code is 1 where one was not
survived; the seed repeats the draws, though not the machine's timing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click

from tests.faults.injector import Injector


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(min=0), default=10.0, show_default=True)
@click.option("--seed", type=int, help="default: drawn")
def main(minutes: float, seed: int | None) -> None:
    seed = int(time.time()) % 10**6 if seed is None else seed
    end = time.monotonic() + 60.0 * minutes
    survived = tried = 0
    with tempfile.TemporaryDirectory() as home:
        injector = Injector(Path(home), seed)
        click.echo(f"seed {seed}; one run takes {injector.seconds:.0f} s")
        while time.monotonic() < end:
            verdict = injector.inject()
            tried += 1
            survived += verdict.survived
            click.echo(
                f"{'ok  ' if verdict.survived else 'LOST'} {verdict.fault}: {verdict.outcome}"
            )
    click.echo(f"survived {survived} of {tried}")
    sys.exit(survived != tried)


if __name__ == "__main__":
    main()
