"""Masks of an exact size, and what training under a mask of weights needs.

Masks are named bool tensors, True = kept, on the device of the tensors they speak of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.selection.threshold import keep_all_but
from pipeline.units.groups import Units

Masks = Mapping[str, Tensor]
Layers = Literal["conv", "all"]
Shuffle = Literal["none", "layerwise", "global"]


def count_of(fraction: float, units: int) -> int:
    """floor(fraction * units), where 0.29 * 100 is 29 although the float product is below it."""
    return math.floor(round(fraction * units, 6))


def drop_smallest(scores: Mapping[str, Tensor], alive: Masks, count: int) -> dict[str, Tensor]:
    """`alive` less exactly `count` units, those of the smallest scores over all tensors together.

    Of equal scores the earlier goes first (order of `scores`, then position in the tensor).

    Raises:
        ValueError: a score is not a number, or fewer than `count` units are alive.
    """
    living = {name: _living(score, alive[name]) for name, score in scores.items()}
    if (total := sum(v.numel() for v in living.values())) < count:
        raise ValueError(f"cannot remove {count} units: only {total} are left")
    if bad := [name for name, v in living.items() if bool(v.isnan().any())]:
        raise ValueError(f"saliency is not a number in {', '.join(bad)}")
    kept = keep_all_but(living, count)
    return {name: _spread(mask, alive[name]) for name, mask in kept.items()}


def _living(score: Tensor, alive: Tensor) -> Tensor:
    return score.flatten() if bool(alive.all()) else score[alive]


def _spread(kept: Tensor, alive: Tensor) -> Tensor:
    """Inverse of `_living` for masks: the dead stay dead."""
    if kept.numel() == alive.numel():
        return kept.view_as(alive)
    return alive.clone().masked_scatter_(alive, kept)


def shuffled(keep: Masks, across: Shuffle, seed: int) -> dict[str, Tensor]:
    """Masks with the same number of weights kept per tensor, or in total, at random places."""
    generator = torch.Generator().manual_seed(seed)

    def permuted(mask: Tensor) -> Tensor:
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        return mask.flatten()[order]

    if across == "layerwise":
        return {name: permuted(mask).view_as(mask) for name, mask in keep.items()}
    flat = permuted(torch.cat([mask.flatten() for mask in keep.values()]))
    parts = torch.split(flat, [mask.numel() for mask in keep.values()])
    return {n: part.view_as(m) for (n, m), part in zip(keep.items(), parts, strict=True)}


def choose_weights(
    model: nn.Module, units: Units, layers: Layers, ignore: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of the weights that take part: of convolutions, or of linear layers too. Frozen weights
    (`requires_grad` is False) do not: a method that may not train a weight does not remove it.

    Args:
        ignore: layers or weights to leave out, by module name ("fc", "layer1") or weight name.

    Raises:
        ValueError: `ignore` names nothing, or no weight is left.
    """
    known = dict(model.named_parameters())
    live = [n for n in units.weights if known[n].requires_grad]
    names = [n for n in live if layers == "all" or known[n].ndim > 2]
    for entry in ignore:
        if not any(_within(n, entry) for n in units.weights):
            weights = ", ".join(units.weights)
            raise ValueError(f"ignore: {entry!r} is no layer with weights (weights: {weights})")
    chosen = tuple(n for n in names if not any(_within(n, entry) for entry in ignore))
    if not chosen:
        frozen = f", {len(units.weights) - len(live)} frozen" * (len(live) < len(units.weights))
        raise ValueError(
            f"no weight is left to prune: layers is {layers!r}, ignore {list(ignore)}{frozen}"
        )
    return chosen


def _within(name: str, entry: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")


def of_layers(values: Mapping[str, float], names: Iterable[str], where: str) -> dict[str, float]:
    """`values` of layers, by the names of their weights or groups.

    Raises:
        ValueError: a key of `values` is none of them; begins with `where`.
    """
    known = tuple(names)
    found: dict[str, float] = {}
    for entry, value in values.items():
        own = [name for name in known if _within(name, entry)]
        if not own:
            raise ValueError(f"{where}: {entry!r} is no layer here (known: {', '.join(known)})")
        found |= dict.fromkeys(own, value)
    return found


class GradientMask:
    """Zeroes the gradients of removed weights.

    With weight, gradient and a fresh optimizer's momentum at zero, no optimizer of the recipe moves
    such a weight: decay acts on a zero.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], keep: Masks) -> None:
        self._parameters = [parameters[name] for name in keep]
        masks = zip(self._parameters, keep.values(), strict=True)
        self._factors = [torch.empty_like(p, requires_grad=False).copy_(m) for p, m in masks]

    def apply(self) -> None:
        """Multiply in; parameters without a gradient are passed over."""
        pairs = zip(self._parameters, self._factors, strict=True)
        live = [(p.grad, factor) for p, factor in pairs if p.grad is not None]
        if live:
            torch._foreach_mul_([g for g, _ in live], [factor for _, factor in live])


@torch.no_grad()
def masked_magnitude(model: nn.Module, units: Units, keep: Masks) -> dict[str, Tensor]:
    """|w| > 0 for every weight alive, one that happens to be exactly 0 too; 0 for the removed."""
    state = model.state_dict()
    scores = {}
    for name in units.weights:
        magnitude = state[name].detach().abs()
        magnitude = magnitude.clamp(min=torch.finfo(magnitude.dtype).tiny)
        scores[name] = magnitude * keep[name].to(magnitude.device) if name in keep else magnitude
    return scores
