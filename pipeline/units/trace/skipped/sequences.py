"""Recurrent layers run the first steps of a sequence only.

On the meta device torch runs an LSTM step by step, twenty operators each. No code of the network
stands between the steps, all use the same weights, and what a step hands to the next settles within
three: an entry state, the first sum with it, and that sum again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from pipeline.units.trace.skipped.follower import Follower

STEPS = 4
"""One more than it takes to settle."""

FORWARDS = frozenset({nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward})


class Sequences:
    """The recurrent layers of a network; the first forward decides, others do the same."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = [
            layer
            for layer in layers.values()
            if isinstance(layer, nn.RNNBase)
            and type(layer).forward in FORWARDS
            and "forward" not in layer.__dict__
        ]
        self._short: list[bool] = []
        self._at = 0

    def install(self, follower: Follower | None) -> list[nn.RNNBase]:
        """Into the layers themselves, which are returned.

        Args:
            follower: of the first forward; None for the others.
        """
        self._at = 0
        if follower is not None:
            self._short = []
        for layer in self._layers:
            layer.__dict__["forward"] = partial(self._forward, layer, follower)
        return self._layers

    def _forward(
        self,
        layer: nn.RNNBase,
        follower: Follower | None,
        input: Any,
        hx: Any = None,  # noqa: A002
    ) -> Any:
        run = partial(type(layer).forward, layer)
        dim = 1 if layer.batch_first and isinstance(input, Tensor) and input.ndim == 3 else 0
        if follower is not None:
            long = isinstance(input, Tensor) and input.ndim in (2, 3) and input.shape[dim] > STEPS
            self._short.append(long and follower.steady(input, dim))
        short = self._at < len(self._short) and self._short[self._at]
        self._at += 1
        if not short:
            return run(input, hx)
        with _disable_current_modes():
            head = torch.empty_like(input.narrow(dim, 0, STEPS))
        if follower is None:
            out, last = run(head, hx)
            return _grown(out, dim, input.shape[dim]), last
        since = follower.products
        follower.carry(head, input)
        out, last = run(head, hx)
        if not follower.steady(out, dim):
            raise NotImplementedError("the steps of a sequence differ")
        grown = _grown(out, dim, input.shape[dim])
        follower.carry(grown, out)
        follower.repeat(since, input.shape[dim] / STEPS)
        return grown, last


def _grown(out: Tensor, dim: int, length: int) -> Tensor:
    """Laid out as torch does: one step after the other."""
    shape = list(out.shape)
    shape[dim] = length
    with _disable_current_modes():
        if dim == 0:
            return out.new_empty(shape)
        return out.new_empty((shape[1], shape[0], *shape[2:])).transpose(0, 1)
