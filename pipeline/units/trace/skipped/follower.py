"""What a tracer must know of calls that do not run."""

from __future__ import annotations

from torch import Tensor

from pipeline.units.trace.shadow import Shadow
from pipeline.units.trace.tracer import Tracer


class Follower:
    """Follows a shortened forward for a tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def steady(self, x: Tensor, dim: int) -> bool:
        """Does it carry the same at all positions along this dimension?"""
        value = self._tracer.values.get(id(x))
        return isinstance(value, Shadow) and value.ids.shape[dim] == 1

    def carry(self, new: Tensor, old: Tensor) -> None:
        """`new` carries what `old` does: they differ in the number of positions only."""
        tracer = self._tracer
        tracer.put(new, tracer.values[id(old)])
        if id(old) in tracer.made_from:
            tracer.made_from[id(new)] = tracer.made_from[id(old)]
        if tracer.flow is not None:
            tracer.flow.carry(new, old)

    @property
    def products(self) -> int:
        """Number of the last matrix product."""
        return self._tracer.product_number

    def repeat(self, since: int, times: float) -> None:
        """The matrix products after number `since` count so often, where the next are numbered."""
        self._tracer.product_number = since + round((self.products - since) * times)
