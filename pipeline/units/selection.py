"""Selection: saliency, target and cost -> pruning plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipeline.units.criteria import erdos_renyi
from pipeline.units.groups import Granularity
from pipeline.units.masks import count_of
from pipeline.units.plan import PruningPlan
from pipeline.units.threshold import keep_all_but

Cost = Callable[[PruningPlan], float]
Saliency = Mapping[str, Tensor]


class Target(BaseModel):
    """How much goes.

    Attributes:
        rule: none; zeros: what training brought to zero, no more and no less; fraction: `value` is
            the fraction of units removed; macs, params: the fraction of the dense cost removed.
        value: in [0, 1).
        scope: rank all units together, remove the same fraction in every layer, or leave layers
            their Erdos-Renyi-kernel densities (weights only).
        round_to: structured: the channels kept per group are rounded up to a multiple.
        min_units: structured: channels kept per group at least.
        closest: macs, params: the plan closest to the budget, even if it costs a little more;
            without it the budget is never exceeded.

    `zeros` ignores `round_to` and `min_units`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["none", "zeros", "fraction", "macs", "params"]
    value: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    scope: Literal["global", "layer", "erk"] = "global"
    round_to: Annotated[int, Field(ge=1)] = 1
    min_units: Annotated[int, Field(ge=0)] = 1
    closest: bool = False


def select(
    saliency: Saliency,
    granularity: Granularity,
    target: Target,
    cost: Cost | None = None,
    reference: float | None = None,
) -> PruningPlan:
    """Remove the least salient units until the target is met.

    Of equal saliencies the earlier unit goes first (order of keys, then position).

    Args:
        cost: what a plan costs, in MACs or parameters; needed by the rules of that name. Removing
            more must never cost more.
        reference: the cost that `target.value` is a fraction of; None: that of the whole network.

    Raises:
        ValueError: a saliency is negative or not finite, or the target cannot be met.
    """
    _check(saliency)
    if target.rule == "none":
        keep = {name: torch.ones_like(s, dtype=torch.bool) for name, s in saliency.items()}
        return PruningPlan(granularity, keep)
    if target.rule == "zeros":
        return PruningPlan(granularity, {name: s > 0 for name, s in saliency.items()})
    ranking = _Ranking(saliency, granularity, target)
    if target.rule == "fraction":
        return ranking.fraction(target.value)
    if cost is None:
        raise ValueError(f"target.rule: {target.rule} needs a cost function")
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
        if self.target.scope == "global":
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
    """The plan that removes the fewest units and costs no more than the budget, or the one with a
    unit more if that is closer and `target.closest`."""
    dense = cost(ranking.plan(0))
    budget = (1.0 - target.value) * (dense if reference is None else reference)
    low, high = 0, ranking.total if target.scope == "layer" else ranking.most
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
    if target.closest and low > 0:
        above = ranking.plan(low - 1)
        if cost(above) - budget < budget - cost(best):
            return above
    return best
