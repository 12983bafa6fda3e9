"""Measured time of a plan, for `latency` targets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.measure.harness import WARM_UP, Latency, cpu_threads, forward_ms
from pipeline.selection.target import LatencyProbe
from pipeline.units.groups import Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink

Timer = Callable[[nn.Module, Tensor], float]
"""Milliseconds of one forward."""


@dataclass(frozen=True)
class Measurement:
    """Times of the dense and the pruned network, measured alternately."""

    units_removed: int
    dense: Latency
    pruned: Latency

    @property
    def ratio(self) -> float:
        return self.pruned.median / self.dense.median


class LatencyCost:
    """Time of the pruned network as a fraction of the dense network's.

    Both are measured again for every plan, alternately, so that a machine that becomes slower or
    busier affects both. The first `WARM_UP` turns are discarded; medians are taken of the others.

    Attributes:
        probes: all measurements, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        units: Units,
        probe: LatencyProbe,
        timer: Timer = forward_ms,
    ) -> None:
        self.inputs, self.units, self.probe, self.timer = inputs, units, probe, timer
        self._source = model
        self._dense = copy.deepcopy(model).eval().to(inputs.device)
        self.probes: list[Measurement] = []

    def __call__(self, plan: PruningPlan) -> float:
        self.probes.append(self.measure(plan))
        return self.probes[-1].ratio

    def measure(self, plan: PruningPlan) -> Measurement:
        """One measurement."""
        pruned = copy.deepcopy(self._source)
        shrink(plan, pruned, self.units)
        pair = self._dense, pruned.eval().to(self.inputs.device)
        with cpu_threads(self.probe.threads):
            turns = [
                [self.timer(network, self.inputs) for network in pair]
                for _ in range(WARM_UP + self.probe.repeats)
            ]
        dense, left = (Latency.of(times) for times in zip(*turns, strict=True))
        return Measurement(plan.total - plan.kept, dense, left)

    def summary(self, plan: PruningPlan, asked: float) -> dict[str, Any]:
        """The requested value and what a final measurement of `plan` achieves. The search chose the
        plan because one measurement was low, so that number is biased."""
        last = self.measure(plan)
        return {
            "asked": asked,
            "achieved": 1.0 - last.ratio,
            "dense_ms": last.dense.median,
            "dense_iqr_ms": last.dense.spread,
            "pruned_ms": last.pruned.median,
            "pruned_iqr_ms": last.pruned.spread,
            "device": str(self.inputs.device),
            "probes": [[p.units_removed, p.dense.median, p.pruned.median] for p in self.probes],
        }
