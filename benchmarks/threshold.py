"""The global threshold of many weights: `python -m benchmarks.threshold [--millions 25]`.

One pruning step at 80% over normally distributed magnitudes in tensors of unequal size. One thread,
methods interleaved. Prints medians of thread time, and the difference between each mask's count and
the requested one (ours is exact; the position of a quantile is a float). If torch.quantile refuses
more than 2^24 numbers, its message is printed instead of a time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from pipeline.selection.threshold import keep_all_but

FRACTION = 0.8
SHARES = (0.5, 0.25, 0.125, 0.0625, 0.0625)
Contender = Callable[[dict[str, Tensor], int], list[Tensor]]


def magnitudes(total: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [round(share * total) for share in SHARES]
    return {
        f"layer{i}": (0.5**i * torch.randn(n, generator=generator)).abs()
        for i, n in enumerate(sizes)
    }


def ours(scores: dict[str, Tensor], count: int) -> list[Tensor]:
    return list(keep_all_but(scores, count).values())


def above(scores: dict[str, Tensor], threshold: Tensor) -> list[Tensor]:
    return [s > threshold for s in scores.values()]


def full_sort(scores: dict[str, Tensor], count: int) -> list[Tensor]:
    return above(scores, torch.cat(list(scores.values())).sort().values[count - 1])


def kthvalue(scores: dict[str, Tensor], count: int) -> list[Tensor]:
    return above(scores, torch.cat(list(scores.values())).kthvalue(count).values)


def quantile(scores: dict[str, Tensor], count: int) -> list[Tensor]:
    flat = torch.cat(list(scores.values()))
    return above(scores, torch.quantile(flat, (count - 1) / (flat.numel() - 1)))


CONTENDERS: dict[str, Contender] = {
    "bracketing (ours)": ours,
    "torch.kthvalue": kthvalue,
    "full sort": full_sort,
    "torch.quantile": quantile,
}


def measure(total: int, repeats: int) -> dict[str, tuple[float, int] | str]:
    """Median seconds and the number of weights removed in excess, or the error message."""
    scores = magnitudes(total)
    count = int(FRACTION * sum(s.numel() for s in scores.values()))
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    missed: dict[str, int] = {}
    found: dict[str, tuple[float, int] | str] = {}
    for _ in range(repeats):
        for name, run in CONTENDERS.items():
            if name in found:
                continue
            began = time.thread_time()
            try:
                masks = run(scores, count)
            except RuntimeError as error:
                found[name] = str(error).splitlines()[0]
                continue
            times[name].append(time.thread_time() - began)
            missed[name] = sum(int((~m).sum()) for m in masks) - count
    assert missed["bracketing (ours)"] == 0
    return found | {n: (statistics.median(t), missed[n]) for n, t in times.items() if t}


@click.command()
@click.option("--millions", default=(10.0, 25.0, 140.0), multiple=True, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(millions: tuple[float, ...], repeats: int) -> None:
    """Print medians and their ratio to ours."""
    torch.set_num_threads(1)
    for size in millions:
        found = measure(round(1e6 * size), repeats)
        ours_took = found["bracketing (ours)"]
        for name, result in found.items():
            if isinstance(result, str):
                text = result
            else:
                ratio = result[0] / ours_took[0]  # type: ignore[operator]
                text = f"{result[0]:8.3f} s {ratio:7.1f} x  removes {result[1]:+d}"
            sys.stdout.write(f"{size:5.0f} M  {name:18} {text}\n")


if __name__ == "__main__":
    main()
