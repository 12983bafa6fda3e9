"""Subnormal numbers (below 1.2e-38 in fp32) as zeros: `train.flush_denormal`.

Once a small network fits its training images, gradients and the averages of their squares become
this small. A CPU computes with them in microcode: measured here, an Adam step of 266,200 weights
took 4.6 ms instead of 0.27, a matrix product of 60 x 300 with 60 x 784 numbers 35 ms instead of
0.15.

torch sets this for the thread that asks, and for threads that start later: those of a pool that
has begun go on as before. So it needs `compute.threads: 1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed(wanted: bool) -> Iterator[None]:
    """Inside, the CPU takes subnormal numbers as zeros if `wanted`.

    Raises:
        ValueError: this processor cannot.
    """
    if wanted and not torch.set_flush_denormal(True):
        raise ValueError("train.flush_denormal: this processor cannot; set it to false")
    try:
        yield
    finally:
        if wanted:
            torch.set_flush_denormal(False)
