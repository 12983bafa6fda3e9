"""Leftovers: sigmoid(0) is 1/2, so a channel behind a sigmoid is not gone when it is zero.

What it leaves is one number, the same for every example and position. The layer that reads it adds
weight times number to each of its outputs, and surgery puts that into the layer's bias.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Formula:
    """A number that the forward computes from zeros and single-element tensors of the network.

    Attributes:
        func: the operator.
        args: its arguments by name; a formula stands for a tensor.
    """

    func: Any
    args: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Operators in it."""
        return 1 + sum(a.size for a in self.args.values() if isinstance(a, Formula))

    def computes(self) -> bool:
        """Does it give a finite number, with a half for every tensor of the network?"""
        half = defaultdict[str, Tensor](lambda: torch.full((1,), 0.5, dtype=torch.float64))
        try:
            found = self.evaluate(half, half[""])
        except (RuntimeError, TypeError, NotImplementedError):
            return False
        return found.shape == (1,) and bool(found.isfinite().all())

    def evaluate(self, tensors: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Shape (1,), of the type and device of `like`."""
        args = {
            name: value.evaluate(tensors, like) if isinstance(value, Formula) else value
            for name, value in self.args.items()
        }
        found: Tensor = self.func(**args)
        return found

    def __reduce__(self) -> Any:
        """By the operator's name: torch does not pickle operators."""
        return _made, (type(self), str(self.func) if self.func else None, dict(self.args))


def _made(kind: type[Formula], func: str | None, args: dict[str, Any]) -> Formula:
    made = object.__new__(kind)
    found = reduce(getattr, func.split("."), torch.ops) if func else None
    object.__setattr__(made, "func", found)
    object.__setattr__(made, "args", args)
    return made


class _Zero(Formula):
    def evaluate(self, tensors: Mapping[str, Tensor], like: Tensor) -> Tensor:
        del tensors
        return like.new_zeros(1)


ZERO = _Zero(None, {})
"""What a channel is before any operator moved it."""


class Scalar(Formula):
    """A parameter or buffer with one element, by its `state_dict` key."""

    def __init__(self, name: str) -> None:
        super().__init__(None, {"name": name})

    def evaluate(self, tensors: Mapping[str, Tensor], like: Tensor) -> Tensor:
        own = tensors[self.args["name"]].detach()
        return own.to(like.device, like.dtype).reshape(1).clone()


@dataclass(frozen=True, eq=False)
class Leftover:
    """What the channels along the inputs of one weight leave.

    Attributes:
        layer: path of the module; its parameter "bias" takes what they leave.
        weight: `state_dict` key; `dim`: the dimension that its inputs stand in.
        bias: key of the bias; None where the layer has none, and gets one.
        which: shape (inputs,): position in `formulas`, -1 for an input that is zero.
    """

    layer: str
    weight: str
    dim: int
    bias: str | None
    which: Tensor
    formulas: tuple[Formula, ...]

    @property
    def outer(self) -> int:
        """The dimension of the weight that its outputs stand in."""
        return 1 - self.dim

    def lost(self, alive: Mapping[int, Tensor]) -> Tensor:
        """Inputs that go and leave something, bool; `alive`: of the weight's dimensions."""
        kept = alive.get(self.dim)
        if kept is None:
            return torch.zeros_like(self.which, dtype=torch.bool)
        return ~kept & (self.which >= 0)
