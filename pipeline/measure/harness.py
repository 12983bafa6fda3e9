"""Measurements on a network: output differences, recalibrated BatchNorm, latency."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

WARM_UP = 3


@torch.no_grad()
def output_difference(
    one: nn.Module, other: nn.Module, batches: Iterable[tuple[Tensor, Any]]
) -> tuple[float, float]:
    """Largest absolute difference of two networks' outputs in evaluation mode, and the same
    relative to the largest absolute output of the first."""
    one.eval()
    other.eval()
    difference = scale = 0.0
    for inputs, _ in batches:
        a, b = one(inputs), other(inputs)
        difference = max(difference, float((a - b).abs().max()))
        scale = max(scale, float(a.abs().max()))
    return difference, difference / scale if scale else difference


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Any]], count: int) -> nn.Module:
    """A copy whose BatchNorm statistics are the plain mean over `count` training batches."""
    model = copy.deepcopy(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return model
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.eval()
    for norm in norms:
        norm.train()
    for inputs, _ in islice(batches, count):
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one forward pass; spread = interquartile range."""

    median: float
    spread: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Of all but the first `WARM_UP` times."""
        low, median, high = statistics.quantiles(times[WARM_UP:], n=4)
        return cls(median, high - low)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def latency(model: nn.Module, inputs: Tensor, repeats: int) -> Latency:
    """Time `model(inputs)` in evaluation mode after a warm-up, with device synchronisation."""
    model.eval()
    return Latency.of([forward_ms(model, inputs) for _ in range(WARM_UP + repeats)])


@torch.inference_mode()
def forward_ms(model: nn.Module, inputs: Tensor) -> float:
    """Wall-clock milliseconds of one `model(inputs)`, with device synchronisation."""
    _wait(inputs.device)
    began = perf_counter()
    model(inputs)
    _wait(inputs.device)
    return 1e3 * (perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
