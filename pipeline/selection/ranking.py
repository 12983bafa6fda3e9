"""The order in which units are removed, and the plan at any point of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.selection.criteria import erdos_renyi
from pipeline.selection.masks import count_of, of_layers
from pipeline.selection.target import Target
from pipeline.selection.threshold import keep_all_but
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan


class Ranking:
    """Plans by the number of units removed; a plan removes all that the one before it removes."""

    def __init__(
        self,
        saliency: Mapping[str, Tensor],
        granularity: Granularity,
        target: Target,
        channels: Mapping[str, int],
        least: Mapping[str, int],
    ) -> None:
        self.granularity = granularity
        self.target = target
        self.structured = granularity is Granularity.STRUCTURED
        if target.scope == "erk" and (self.structured or target.rule != "fraction"):
            raise ValueError("target.scope: erk needs rule: fraction and unstructured units")
        self.saliency = {name: s.detach() for name, s in saliency.items()}
        if len({s.dtype for s in saliency.values()}) > 1:
            self.saliency = {name: s.double() for name, s in self.saliency.items()}
        self.steps = {
            name: target.round_to // math.gcd(target.round_to, channels.get(name, 1))
            for name in saliency
        }
        self.total = sum(s.numel() for s in saliency.values())
        self.spared = {n: self._spared(s, least.get(n)) for n, s in self.saliency.items()}
        self.scores = {name: self._protected(name) for name in saliency}
        self.most = self.total - sum(self.spared.values())
        self.last = self.total if target.scope == "layer" else self.most

    def _spared(self, s: Tensor, least: int | None) -> int:
        """Number of units of a tensor that are never removed; `least`: of experts and branches."""
        if not self.structured or least == 0:
            return 0
        return min(max(self.target.min_units, least or 0), s.numel())

    def _protected(self, name: str) -> Tensor:
        """Saliency with the `min_units` most salient units of a group set to infinity."""
        s, spared = self.saliency[name], self.spared[name]
        if not spared:
            return s
        last = torch.argsort(s, stable=True)[s.numel() - spared :]
        return s.index_fill(0, last, torch.inf)

    def fraction(self, fraction: float) -> PruningPlan:
        """Remove that fraction of all units, or of the units of each layer.

        Raises:
            ValueError: `min_units` leaves too few to remove.
        """
        if self.target.scope == "layer":
            own = of_layers(self.target.layer_values, self.scores, "target.layer_values")
            counts = {n: count_of(own.get(n, fraction), s.numel()) for n, s in self.scores.items()}
            return self._layers(counts)
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
        """Weights to remove per layer; the largest layer absorbs the rounding."""
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
            keep = {name: self._rounded(name, mask) for name, mask in keep.items()}
        return PruningPlan(self.granularity, keep)

    def _rounded(self, name: str, mask: Tensor) -> Tensor:
        """Restore the most salient removed units until the channels kept are a multiple."""
        s, kept = self.saliency[name], int(mask.sum())
        missing = min(-kept % self.steps[name], s.numel() - kept)
        order = torch.argsort(s, stable=True)
        back = order[~mask[order]][-missing:] if missing else order[:0]
        result = mask.clone()
        result[back] = True
        return result
