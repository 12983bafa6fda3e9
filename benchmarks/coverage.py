"""What fraction of each network can be pruned, and whether surgery is exact.

    python -m benchmarks.coverage [--only timm] [--out docs/coverage.md]

Needs `pip install -e .[zoo]` for the networks of timm. Every network of tests/zoo is traced, half
of every group is removed, and the masked and the shrunk network are compared in float64.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.zoo.check import Row, measure
from tests.zoo.networks import Network, networks

LIMIT = 120
"""Time limit per network, in seconds."""


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT} seconds")


def rows(only: str) -> Iterator[Row]:
    signal.signal(signal.SIGALRM, _too_long)
    for network in networks():
        if only in network.id:
            yield _row(network)


def _row(network: Network) -> Row:
    began = time.thread_time()
    signal.alarm(LIMIT)
    try:
        row = measure(network)
    except TimeoutError as error:
        row = Row(network.id, False, None, 0.0, str(error))
    finally:
        signal.alarm(0)
    sys.stderr.write(f"{row} {time.thread_time() - began:.1f} s\n")
    return row


def table(found: list[Row]) -> Iterator[str]:
    yield "# Coverage\n"
    yield (
        "Written by `python -m benchmarks.coverage`. Exact: masked and shrunk outputs agree in "
        "float64 with half of every group removed. Share: parameters in prunable groups. "
        "Reason: why the largest other group stays, or what failed.\n"
    )
    for library in dict.fromkeys(row.name.partition("/")[0] for row in found):
        own = [row for row in found if row.name.startswith(f"{library}/")]
        traced, exact = sum(r.traced for r in own), sum(r.exact for r in own)
        mean = sum(r.share for r in own) / len(own)
        yield (
            f"## {library}: {len(own)} networks, {traced} traced, {exact} exact, mean share "
            f"{mean:.2f}\n"
        )
        yield "| network | traced | exact | share | reason |\n|---|---|---|---|---|"
        for row in own:
            exactness = "no" if row.difference is None else f"{row.difference:.0e}"
            reason = row.reason.replace("|", "\\|")[:140]
            yield (
                f"| {row.name.partition('/')[2]} | {'yes' if row.traced else 'no'} | {exactness} | "
                f"{row.share:.2f} | {reason} |"
            )
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="networks whose library/name contains this")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.write_text("\n".join(table(list(rows(asked.only)))))


if __name__ == "__main__":
    main()
