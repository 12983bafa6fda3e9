"""What fraction of each network can be pruned, and whether surgery is exact.

    python -m benchmarks.coverage [--only timm bert] [--again]

Rows are kept in benchmarks/coverage.jsonl; a network that has one is measured only with --again, so
a run may be stopped, and split by --only.
Needs `pip install -e .[zoo]` for the networks of timm. Every network of tests/zoo is traced, half
of every group is removed, and the masked and the shrunk network are compared in float64.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo.peer import PeerRow
from benchmarks.zoo.peer import read_rows as read_peer
from tests.zoo.check import Row, measure
from tests.zoo.networks import Network, networks

ROWS = Path(__file__).with_suffix(".jsonl")
LIMIT = 120
"""Limit per network, in seconds of processor time."""


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT} seconds")


def run(only: list[str], known: set[str]) -> None:
    """Append a row for every chosen network that has none."""
    signal.signal(signal.SIGVTALRM, _too_long)
    for network in networks():
        if any(word in network.id for word in only) and network.id not in known:
            row = _row(network)
            with ROWS.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")


def read_rows() -> list[Row]:
    """In the order of the list; of a network that stands there twice the last one."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    found = {row.name: row for row in (Row(**json.loads(line)) for line in lines)}
    return [found[network.id] for network in networks() if network.id in found]


def _row(network: Network) -> Row:
    began = time.thread_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
    try:
        row = measure(network)
    except TimeoutError as error:
        row = Row(network.id, False, None, 0.0, str(error))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    sys.stderr.write(f"{row} {time.thread_time() - began:.1f} s\n")
    return row


def table(found: list[Row]) -> Iterator[str]:
    yield "# Coverage\n"
    yield (
        "Written by `python -m benchmarks.coverage`. Exact: masked and shrunk outputs agree in "
        "float64 with half of every group removed. Share: parameters in prunable groups. "
        "Reason: why the largest other group stays, or what failed. Torch-Pruning 1.6.1 the same "
        "way (`python -m benchmarks.zoo.peer`): exactness, share; it also cuts streams under "
        "LayerNorm, which changes outputs. No figure: pruning it, or masking the same channels for "
        "the comparison, raised; which of the two is not settled. Time: CPU time to find the "
        "groups, ours over theirs, in turns in one process, the smallest of three; torchvision's "
        "classifiers at 224 pixels. Memory: the peak while the groups are found, ours over theirs, "
        "each in a process of its own.\n"
    )
    total = len(found)
    yield (
        f"**{total} networks: {sum(r.traced for r in found)} traced, {sum(r.exact for r in found)} "
        f"exact, mean share {sum(r.share for r in found) / max(1, total):.2f}.**\n"
    )
    peer = read_peer()
    for library in dict.fromkeys(row.name.partition("/")[0] for row in found):
        own = [row for row in found if row.name.startswith(f"{library}/")]
        traced, exact = sum(r.traced for r in own), sum(r.exact for r in own)
        mean = sum(r.share for r in own) / len(own)
        yield (
            f"## {library}: {len(own)} networks, {traced} traced, {exact} exact, mean share "
            f"{mean:.2f}\n"
        )
        yield from _peer_summary([peer[row.name] for row in own if row.name in peer])
        yield "| network | traced | exact | share | Torch-Pruning | time | memory | reason |"
        yield "|---|---|---|---|---|---|---|---|"
        for row in own:
            exactness = "no" if row.difference is None else f"{row.difference:.0e}"
            reason = row.reason.replace("|", "\\|")[:140]
            yield (
                f"| {row.name.partition('/')[2]} | {'yes' if row.traced else 'no'} | {exactness} | "
                f"{row.share:.2f} | {_beside(peer.get(row.name))} | {reason} |"
            )
        yield ""
    names = {row.name for row in found}
    if missing := [network.id for network in networks() if network.id not in names]:
        yield f"Not run: {', '.join(missing)}.\n"


def _peer_summary(rows: list[PeerRow]) -> Iterator[str]:
    if rows:
        ratios = [row.ours / row.theirs for row in rows if row.ours and row.theirs]
        share = sum(row.share for row in rows) / len(rows)
        median = f", median time {statistics.median(ratios):.2f} of {len(ratios)}" if ratios else ""
        peaks = [r.our_memory / r.their_memory for r in rows if r.our_memory and r.their_memory]
        if peaks:
            median += f", median memory {statistics.median(peaks):.2f} of {len(peaks)}"
        yield (
            f"Torch-Pruning: {len(rows)} run, {sum(r.traced for r in rows)} traced, "
            f"{sum(r.difference is not None for r in rows)} compared, "
            f"{sum(r.exact for r in rows)} exact and smaller, mean share {share:.2f}{median}.\n"
        )


def _beside(row: PeerRow | None) -> str:
    """Three cells: what Torch-Pruning does, the ratios of CPU times and of memory."""
    if row is None:
        return "not run | not run | not run"
    found = "not traced"
    if row.traced:
        found = "no figure" if row.difference is None else f"{row.difference:.0e}"
        found += ", not smaller" * (row.difference is not None and not row.smaller)
        found += f", {row.share:.2f}"
    ratio = f"{row.ours / row.theirs:.2f}" if row.ours and row.theirs else "no"
    memory = "not run" if row.our_memory is None else "no"
    if row.our_memory is not None and row.their_memory:
        memory = f"{row.our_memory / row.their_memory:.2f}"
    return f"{found} | {ratio} | {memory}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=[""], help="networks whose library/name contains one of these"
    )
    parser.add_argument("--again", action="store_true", help="measure those with a row too")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    run(asked.only, set() if asked.again else {row.name for row in read_rows()})
    found = read_rows()
    mean = sum(row.share for row in found) / max(1, len(found))
    sys.stderr.write(f"{len(found)} networks, mean share {mean:.3f}\n")
    asked.out.write_text("\n".join(table(found)))


if __name__ == "__main__":
    main()
