"""Spend what a cut leaves of the budget on removed units that still fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from pipeline.units.plan import PruningPlan


def filled(
    plan: PruningPlan,
    saliency: Mapping[str, Tensor],
    cost: Callable[[PruningPlan], float],
    budget: float,
    steps: Mapping[str, int],
) -> PruningPlan:
    """`plan` with removed units put back, the most salient first, while it costs at most `budget`.

    A cut along the ranking stops before the first unit that is too expensive; cheaper units behind
    it may still fit. `steps[group]` units of a group are restored together, or as many as are left.
    Of equal saliencies the later unit is restored first, since it would have been removed last.
    Once a group has failed it is not tried again: removing more never costs more.
    """
    closed: set[str] = set()
    for name, position in _removed(plan, saliency):
        if name in closed or plan.keep[name][position]:
            continue
        more = _with(plan, saliency, name, steps.get(name, 1))
        if cost(more) <= budget:
            plan = more
        else:
            closed.add(name)
    return plan


def one_step_wider(
    plan: PruningPlan, saliency: Mapping[str, Tensor], steps: Mapping[str, int]
) -> Iterator[PruningPlan]:
    """`plan` with one more step of each group in turn, the most salient removed unit first."""
    for name in dict.fromkeys(name for name, _ in _removed(plan, saliency)):
        yield _with(plan, saliency, name, steps.get(name, 1))


def _with(plan: PruningPlan, saliency: Mapping[str, Tensor], name: str, step: int) -> PruningPlan:
    """`plan` with the `step` most salient of the units it removes from one group."""
    mask = plan.keep[name].clone()
    order = torch.argsort(saliency[name], stable=True)
    mask[order[~mask[order]][-step:]] = True
    return PruningPlan(plan.granularity, {**plan.keep, name: mask})


def _removed(plan: PruningPlan, saliency: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """The units that `plan` removes, last removed first."""
    units = [
        (float(score), number, name, position)
        for number, (name, mask) in enumerate(plan.keep.items())
        for position, (score, kept) in enumerate(
            zip(saliency[name].tolist(), mask.tolist(), strict=True)
        )
        if not kept
    ]
    return [(name, position) for _, _, name, position in sorted(units, reverse=True)]
