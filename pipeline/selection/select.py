"""Selection: saliency, target and cost -> pruning plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from pipeline.selection.criteria import erdos_renyi
from pipeline.selection.fill import filled, one_step_wider
from pipeline.selection.masks import count_of
from pipeline.selection.random_widths import random_widths
from pipeline.selection.threshold import keep_all_but
from pipeline.selection.time_budget import cut_to_time
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan

Cost = Callable[[PruningPlan], float]
Saliency = Mapping[str, Tensor]


class LatencyProbe(BaseModel):
    """How a `latency` target measures: forwards of `batch_size` examples; `threads` on the CPU.

    `repeats`: of the dense and the pruned network, in turns, per measurement; the medians count.
    `probes`: measurements at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1
    repeats: Annotated[int, Field(ge=3)] = 20
    probes: Annotated[int, Field(ge=1)] = 20


class Target(BaseModel):
    """How much goes.

    Attributes:
        rule: none; zeros: what training brought to zero, no more and no less; fraction: `value` is
            the fraction of units removed; macs, params: the fraction of the dense cost removed;
            latency: the fraction of the dense network's measured time that goes. No two
            measurements agree, so neither do two searches: the plan that was found is what is
            stored, and what everything after it uses.
        value: in [0, 1).
        scope: rank all units together, remove the same fraction in every layer, leave layers their
            Erdos-Renyi-kernel densities (weights only), or leave each a random fraction of its own
            (widths.py), drawn by the seed of the training.
        narrowest: of scope random: the least that a layer may draw, where the widest draws 1.
        round_to: structured: the channels kept per group are rounded up to a multiple.
        min_units: structured: channels kept per group at least.
        closest: macs, params: the plan closest to the budget, even if it costs a little more;
            without it the budget is never exceeded.
        fill: macs, params: what the cut leaves of the budget is spent on the most salient of the
            removed units that still fit. With `closest` one unit more of any group may exceed it.
        latency: how to measure, for the rule of that name.

    `zeros` ignores `round_to` and `min_units`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["none", "zeros", "fraction", "macs", "params", "latency"]
    value: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    scope: Literal["global", "layer", "erk", "random"] = "global"
    narrowest: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    round_to: Annotated[int, Field(ge=1)] = 1
    min_units: Annotated[int, Field(ge=0)] = 1
    closest: bool = False
    fill: bool = False
    latency: LatencyProbe | None = None

    @model_serializer(mode="wrap")
    def _without_unasked(self, standard: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is younger than the first records is absent while nobody asks."""
        told = standard(self) | {"latency": self.probe.model_dump()}
        asked = {"fill": self.fill, "latency": self.rule == "latency"}
        asked["narrowest"] = self.scope == "random"
        return {key: value for key, value in told.items() if asked.get(key, True)}

    @model_validator(mode="after")
    def _fits_the_rule(self) -> Target:
        ranked = self.scope in ("global", "random")
        if self.fill and not (self.rule in ("macs", "params") and ranked):
            raise ValueError("fill: needs rule: macs or params, and scope: global or random")
        if self.narrowest and self.scope != "random":
            raise ValueError(f"narrowest: of scope: random, not of scope: {self.scope}")
        if self.latency is not None and self.rule != "latency":
            raise ValueError(f"latency: settings of rule: latency, not of rule: {self.rule}")
        if self.closest and self.rule == "latency":
            raise ValueError("closest: not for rule: latency, whose measurements are not exact")
        return self

    @property
    def probe(self) -> LatencyProbe:
        """How to measure time."""
        return self.latency or LatencyProbe()


def select(
    saliency: Saliency,
    granularity: Granularity,
    target: Target,
    cost: Cost | None = None,
    reference: float | None = None,
    seed: int = 0,
) -> PruningPlan:
    """Remove the least salient units until the target is met.

    Of equal saliencies the earlier unit goes first (order of keys, then position).

    Args:
        cost: what a plan costs, in MACs or parameters; needed by the rules of that name. Removing
            more must never cost more. For `latency` the measured time of what the plan leaves, as a
            fraction of the whole network's.
        reference: the cost that `target.value` is a fraction of; None: that of the whole network.
        seed: of random widths.

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
    if target.scope == "random":
        saliency = random_widths(saliency, seed, target.narrowest)
    ranking = _Ranking(saliency, granularity, target)
    if target.rule == "fraction":
        return ranking.fraction(target.value)
    if cost is None:
        raise ValueError(f"target.rule: {target.rule} needs a cost function")
    if target.rule == "latency":
        if granularity is Granularity.UNSTRUCTURED:
            raise ValueError("target.rule: latency needs structured units: zeros save no time")
        return cut_to_time(ranking, ranking.last, target.value, target.probe.probes, cost)
    return _cut_to_budget(ranking, target, cost, reference)


def _check(saliency: Saliency) -> None:
    for name, s in saliency.items():
        if not s.numel():
            continue
        low, high = (float(x) for x in torch.aminmax(s))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"saliency of {name!r} is not finite")
        if low < 0:
            raise ValueError(f"saliency of {name!r} is negative; it must be 0 (removed) or above")


class _Ranking:
    """Plans by the number of units removed; each is contained in the next."""

    def __init__(self, saliency: Saliency, granularity: Granularity, target: Target) -> None:
        self.granularity = granularity
        self.target = target
        self.structured = granularity is Granularity.STRUCTURED
        if target.scope == "erk" and (self.structured or target.rule != "fraction"):
            raise ValueError("target.scope: erk needs rule: fraction and unstructured units")
        self.saliency = {name: s.detach() for name, s in saliency.items()}
        if len({s.dtype for s in saliency.values()}) > 1:
            self.saliency = {name: s.double() for name, s in self.saliency.items()}
        self.total = sum(s.numel() for s in saliency.values())
        self.spared = {name: self._spared(s) for name, s in self.saliency.items()}
        self.scores = {name: self._protected(name) for name in saliency}
        self.most = self.total - sum(self.spared.values())
        self.last = self.total if target.scope == "layer" else self.most

    def _spared(self, s: Tensor) -> int:
        """How many units of a tensor never go."""
        return min(self.target.min_units, s.numel()) if self.structured else 0

    def _protected(self, name: str) -> Tensor:
        """Saliency with the most salient `min_units` of a group out of reach."""
        s, spared = self.saliency[name], self.spared[name]
        if not spared:
            return s
        last = torch.argsort(s, stable=True)[s.numel() - spared :]
        return s.index_fill(0, last, torch.inf)

    def fraction(self, fraction: float) -> PruningPlan:
        """Without that fraction of all units, or of the units of each layer.

        Raises:
            ValueError: `min_units` leaves too few to remove.
        """
        if self.target.scope == "layer":
            return self._layers({n: count_of(fraction, s.numel()) for n, s in self.scores.items()})
        if self.target.scope == "erk":
            return self._layers(self._erk_shares(fraction))
        count = count_of(fraction, self.total)
        if count > self.most:
            raise ValueError(
                f"target: cannot remove {count} of {self.total} units, min_units: "
                f"{self.target.min_units} leaves {self.most} to remove; lower one of the two"
            )
        return self.plan(count)

    def plan(self, count: int) -> PruningPlan:
        """With `count` units removed, before rounding; per layer, the same share of each."""
        if self.target.scope != "layer":
            return self._finish(keep_all_but(self.scores, count))
        shares = {name: s.numel() * count // self.total for name, s in self.scores.items()}
        return self._layers(shares)

    def _erk_shares(self, fraction: float) -> dict[str, int]:
        """Weights to remove per layer; what rounding leaves over goes with the largest layer."""
        shapes = {name: tuple(s.shape) for name, s in self.scores.items()}
        densities = erdos_renyi(shapes, 1.0 - fraction)
        shares = {n: count_of(1.0 - densities[n], s.numel()) for n, s in self.scores.items()}
        largest = max(shares, key=lambda name: shares[name])
        shares[largest] += count_of(fraction, self.total) - sum(shares.values())
        return shares

    def _layers(self, shares: Mapping[str, int]) -> PruningPlan:
        keep: dict[str, Tensor] = {}
        for name, s in self.scores.items():
            share = min(shares[name], s.numel() - self.spared[name])
            keep |= keep_all_but({name: s}, share)
        return self._finish(keep)

    def _finish(self, keep: dict[str, Tensor]) -> PruningPlan:
        if self.structured and self.target.round_to > 1:
            keep = {name: self._rounded(self.saliency[name], mask) for name, mask in keep.items()}
        return PruningPlan(self.granularity, keep)

    def _rounded(self, s: Tensor, mask: Tensor) -> Tensor:
        """Bring back the most salient of the removed until the count is a multiple."""
        kept, step = int(mask.sum()), self.target.round_to
        missing = min(-kept % step, s.numel() - kept)
        order = torch.argsort(s, stable=True)
        back = order[~mask[order]][-missing:] if missing else order[:0]
        result = mask.clone()
        result[back] = True
        return result


def _cut_to_budget(
    ranking: _Ranking, target: Target, cost: Cost, reference: float | None
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
        best = filled(best, ranking.saliency, cost, budget, target.round_to)
        if target.closest:
            above += one_step_wider(best, ranking.saliency, target.round_to)
    return min((best, *above), key=lambda plan: abs(cost(plan) - budget))
