"""Selection: saliency, target and cost -> pruning plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.selection.fill import filled, one_step_wider
from pipeline.selection.random_widths import random_widths
from pipeline.selection.ranking import Ranking
from pipeline.selection.target import Target
from pipeline.selection.time_budget import cut_to_time
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

Cost = Callable[[PruningPlan], float]
Saliency = Mapping[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What a selection depends on beside scores, target and cost.

    Attributes:
        reference: the cost that `target.value` is a fraction of; None: that of the whole network.
        seed: of random widths.
        channels: channels per unit of every group (`channels_per_unit`), for `round_to`; 1 where
            absent.
        least: units of a group that must stay: experts, of which a router picks so many; 0 where
            the only one may go (branches), whatever `min_units` says.
    """

    reference: float | None = None
    seed: int = 0
    channels: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, units: Units, reference: float | None = None, seed: int = 0) -> Context:
        """What follows from the units."""
        least = {g.name: g.least for g in units.prunable if g.kind != "channel"}
        return cls(reference, seed, channels_per_unit(units), least)


def channels_per_unit(units: Units) -> dict[str, int]:
    """How many channels of its layers one unit of every prunable group is: 8 for a group of
    GroupNorm(4, 32), the width of a head for attention. Where its producers differ, their greatest
    common divisor, so that a multiple of it is one in every layer."""
    return {
        g.name: math.gcd(*(s.index.shape[1] for s in g.slices if s.role == "producer"))
        for g in units.prunable
    }


def select(
    saliency: Saliency,
    granularity: Granularity,
    target: Target,
    cost: Cost | None = None,
    context: Context | None = None,
) -> PruningPlan:
    """Remove the least salient units until the target is met.

    Of equal saliencies the earlier unit goes first (order of keys, then position).

    Args:
        cost: what a plan costs, in MACs or parameters; needed by the rules of that name. Removing
            more must never cost more. For `latency` the measured time of what the plan leaves, as a
            fraction of the whole network's.
        context: what the scores do not say; None: the defaults.

    Raises:
        ValueError: a saliency is negative or not finite, or the target cannot be met, or not by
            units of this granularity.
    """
    _check(saliency)
    if target.rule == "none":
        keep = {name: torch.ones_like(s, dtype=torch.bool) for name, s in saliency.items()}
        return PruningPlan(granularity, keep)
    if target.rule == "zeros":
        return PruningPlan(granularity, {name: s > 0 for name, s in saliency.items()})
    context = context or Context()
    if target.scope == "random":
        saliency = random_widths(saliency, context.seed, target.narrowest)
    ranking = Ranking(saliency, granularity, target, context.channels, context.least)
    if target.rule == "fraction":
        return ranking.fraction(target.value)
    if cost is None:
        raise ValueError(f"target.rule: {target.rule} needs a cost function")
    if target.rule == "latency":
        if granularity is Granularity.UNSTRUCTURED:
            raise ValueError("target.rule: latency needs structured units: zeros save no time")
        return cut_to_time(ranking, ranking.last, target.value, target.probe.probes, cost)
    return _cut_to_budget(ranking, target, cost, context.reference)


def _check(saliency: Saliency) -> None:
    for name, s in saliency.items():
        if not s.numel():
            continue
        low, high = (float(x) for x in torch.aminmax(s))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"saliency of {name!r} is not finite")
        if low < 0:
            raise ValueError(f"saliency of {name!r} is negative; it must be 0 (removed) or above")


def _cut_to_budget(
    ranking: Ranking, target: Target, cost: Cost, reference: float | None
) -> PruningPlan:
    """The plan that removes the fewest units and costs no more than the budget, filled up if
    `target.fill`; if `target.closest`, one with a unit more where that comes closer."""
    dense = cost(ranking.plan(0))
    budget = (1.0 - target.value) * (dense if reference is None else reference)
    low, high = 0, ranking.last
    best = ranking.plan(high)
    if (least := cost(best)) > budget:
        raise ValueError(
            f"target: {target.rule} cannot be cut by {target.value}: the smallest plan that "
            f"min_units: {target.min_units} and round_to: {target.round_to} allow still costs "
            f"{least / dense:.4f} of the dense network"
        )
    while low < high:
        middle = (low + high) // 2
        plan = ranking.plan(middle)
        if cost(plan) <= budget:
            high, best = middle, plan
        else:
            low = middle + 1
    above = [ranking.plan(low - 1)] if target.closest and low > 0 else []
    if target.fill:
        best = filled(best, ranking.saliency, cost, budget, ranking.steps)
        if target.closest:
            above += one_step_wider(best, ranking.saliency, ranking.steps)
    return min((best, *above), key=lambda plan: abs(cost(plan) - budget))
