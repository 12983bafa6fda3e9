"""A budget of measured time: a search with a bounded number of measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pipeline.units.plan import PruningPlan

Ratio = Callable[[PruningPlan], float]
"""Measured time of the pruned network as a fraction of the dense one's; it varies per call."""


class Plans(Protocol):
    """Plans by the number of units removed; each is contained in the next."""

    def plan(self, count: int) -> PruningPlan: ...


def cut_to_time(plans: Plans, most: int, value: float, probes: int, ratio: Ratio) -> PruningPlan:
    """The plan with the fewest units removed whose measured time is at most 1 - `value`.

    Bisection over the number of units removed, from 0 to `most`. The two neighbours at which it
    ends are measured once more. If a second measurement contradicts the first, the search continues
    from the bound before. It ends when both are confirmed, or after `probes` measurements.

    Raises:
        ValueError: the smallest plan takes longer than that.
    """
    if not value:
        return plans.plan(0)
    search = _Bisection(plans, most, 1.0 - value, ratio)
    if (least := search.ask(most)) > 1.0 - value:
        raise ValueError(
            f"target: latency cannot be cut by {value}: the smallest plan that min_units and "
            f"round_to allow still takes {least:.4f} of the dense network's time; lower "
            "target.value, or measure larger batches (target.latency.batch_size)"
        )
    for _ in range(probes - 1):
        if not search.advance():
            break
    return plans.plan(search.fast[-1])


class _Bisection:
    """Numbers of removed units that are too slow, rising, and fast enough, falling."""

    def __init__(self, plans: Plans, most: int, budget: float, ratio: Ratio) -> None:
        self.plans, self.budget, self.ratio = plans, budget, ratio
        self.slow, self.fast = [0], [most]
        self.sure = {0, most}

    def ask(self, count: int) -> float:
        return self.ratio(self.plans.plan(count))

    def advance(self) -> bool:
        """One measurement; False when there is none left to make."""
        low, high = self.slow[-1], self.fast[-1]
        unsure = [end for end in (high, low) if end not in self.sure]
        if high - low > 1:
            middle = (low + high) // 2
            (self.fast if self.ask(middle) <= self.budget else self.slow).append(middle)
        elif unsure:
            self._ask_again(unsure[0])
        else:
            return False
        return True

    def _ask_again(self, count: int) -> None:
        was, now = self.slow, self.fast
        if self.fast[-1] == count:
            was, now = self.fast, self.slow
        if (self.ask(count) <= self.budget) == (was is self.fast):
            self.sure.add(count)
        else:
            now.append(was.pop())
