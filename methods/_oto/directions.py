"""Search directions v: the gradient itself, its heavy-ball average, or Adam's ratio.

Used by optimizers whose update contains `x <- x - lr * v`. Moments are stored in the torch
optimizer's `state`, under torch's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.training.recipe import OptimizerConfig
from pipeline.units.scratch import PIECE, KeyedScratch, Scratch

State = MutableMapping[Any, dict[str, Any]]
EPS = 1e-8  # in Adam's denominator
SMALL = 2**12  # up to so many elements, the overhead of a kernel call exceeds its work


def check_row_wise(optimizer: OptimizerConfig) -> None:
    """
    Raises:
        ValueError: the recipe's optimizer has no row-wise form.
    """
    if optimizer.name == "adadelta" or (optimizer.nesterov and optimizer.name == "sgd"):
        raise ValueError(
            f"train.optimizer: {optimizer.name!r} with nesterov={optimizer.nesterov} has no "
            "row-wise form (use sgd without nesterov, adam or adamw)"
        )


def heavy_ball(
    state: State, params: list[Tensor], grads: list[Tensor], momentum: float, decay: float = 0.0
) -> list[Tensor]:
    """b <- momentum * b + q with q = gradient + decay * x; b = q in the first step.

    Returns the buffers stored in `state`, not copies.
    """
    buffers, _ = _moment(state, "momentum_buffer", params)
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    if decay:
        torch._foreach_add_(buffers, params, alpha=decay)
    return buffers


def decayed(
    params: list[Tensor], grads: list[Tensor], decay: float, kept: KeyedScratch
) -> list[Tensor]:
    """gradient + decay * x; on a CPU the result is written to the scratch `kept`."""
    if not all(p.device.type == "cpu" for p in params):
        return list(torch._foreach_add(grads, params, alpha=decay))
    pairs = zip(grads, params, strict=True)
    return [torch.add(g, x, alpha=decay, out=kept.like(id(x), x)) for g, x in pairs]


class Adam:
    """m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + eps) with weight decay added to the gradient.

    On a CPU, torch's fused kernel computes v in one pass into scratch of the size of the
    parameters. Other devices, and torch versions without that kernel, use foreach operations.

    Args:
        betas: b1, b2.
        faithful_moments: start the moments at g and g^2 instead of (1-b) g and (1-b) g^2, as the
            OTO programs do. Steps are then much smaller than Adam's for thousands of calls.
    """

    def __init__(self, betas: tuple[float, float], faithful_moments: bool = False) -> None:
        self.betas, self.faithful_moments = betas, faithful_moments
        self._scratch, self._out, self._grads = Scratch(), KeyedScratch(), KeyedScratch()
        self._can_fuse = has_fused_adam()

    def __call__(
        self,
        state: State,
        params: list[Tensor],
        grads: list[Tensor],
        step: int,
        decay: float = 0.0,
    ) -> list[Tensor]:
        """v at step t (1-based); the next call overwrites the returned tensors."""
        mean, fresh = _moment(state, "exp_avg", params)
        square, _ = _moment(state, "exp_avg_sq", params)
        if fresh and self.faithful_moments:  # g and g^2 are fixed points of the updates below
            torch._foreach_add_(mean, grads)
            torch._foreach_add_(mean, params, alpha=decay)
            torch._foreach_addcmul_(square, mean, mean)
        out = [self._out.like(id(p), m) for p, m in zip(params, mean, strict=True)]
        if self._can_fuse and all(p.device.type == "cpu" for p in params):
            self._fused((params, grads, mean, square, out), step, decay)
            return out
        grads = decayed(params, grads, decay, self._grads) if decay else grads
        self._listed(grads, (mean, square, out), step)
        return out

    def _fused(self, lists: tuple[list[Tensor], ...], step: int, decay: float) -> None:
        """`lists`: x, gradient, m, s, v. Large tensors are split up, small ones share one call."""
        done, few = torch.tensor(float(step)), [list[Tensor]() for _ in range(4)]
        for x, g, *own in zip(*lists, strict=True):
            for xi, gi, *rest in _pieces(x, g, own):
                if decay:
                    room = self._scratch.like(gi) if gi.numel() > SMALL else None
                    gi = torch.add(gi, xi, alpha=decay, out=room)
                if gi.numel() > SMALL:
                    fused_adam([[t] for t in (gi, *rest)], done, self.betas)
                    continue
                for kind, t in zip(few, (gi, *rest), strict=True):
                    kind.append(t)
        if few[0]:
            fused_adam(few, done, self.betas)

    def _listed(
        self, grads: list[Tensor], own: tuple[list[Tensor], list[Tensor], list[Tensor]], step: int
    ) -> None:
        (mean, square, v), (b1, b2) = own, self.betas
        torch._foreach_lerp_(mean, grads, 1.0 - b1)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, grads, grads, value=1.0 - b2)
        # fold both bias corrections into the denominator: saves one pass over memory
        first = 1.0 - b1**step
        torch._foreach_copy_(v, square)
        torch._foreach_sqrt_(v)
        torch._foreach_mul_(v, first / math.sqrt(1.0 - b2**step))
        torch._foreach_add_(v, EPS * first)
        torch._foreach_reciprocal_(v)
        torch._foreach_mul_(v, mean)


def _pieces(x: Tensor, g: Tensor, own: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Split x, the gradient and `own` (m, s, v) alike, in the memory order of `own`.

    The fused kernel assumes that all its arguments have the same memory layout.
    """
    v = own[-1]
    read = [t if t.stride() == v.stride() else torch.empty_like(v).copy_(t) for t in (x, g)]
    if v.numel() <= PIECE:
        return iter(((*read, *own),))
    flat = [t.as_strided((v.numel(),), (1,)).split(PIECE) for t in (*read, *own)]
    return zip(*flat, strict=True)


def fused_adam(lists: Sequence[list[Tensor]], done: Tensor, betas: tuple[float, float]) -> None:
    """Write Adam's ratio to v with torch's AdamW kernel; `lists`: gradient, m, s, v.

    A learning rate of -1 adds the ratio to v. A weight decay of -1 multiplies the previous content
    of v by 1 - (-1)(-1) = 0.
    """
    grads, mean, square, v = lists
    torch._fused_adamw_(
        v,
        grads,
        mean,
        square,
        [],
        [done] * len(v),
        lr=-1.0,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=-1.0,
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )


@cache
def has_fused_adam() -> bool:
    """Whether torch's fused kernel works. It is private, so it is tried once, on one element."""
    v, g, m, s = torch.full((1,), 7.0), torch.ones(1), torch.zeros(1), torch.zeros(1)
    try:
        fused_adam([[g], [m], [s], [v]], torch.tensor(1.0), (0.9, 0.999))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return abs(float(v) - 1.0) < 1e-5


def _moment(state: State, name: str, params: list[Tensor]) -> tuple[list[Tensor], bool]:
    """The buffers of `params`, and whether they were just created."""
    fresh = name not in state[params[0]]
    for p in params:
        if name not in state[p]:
            state[p][name] = torch.zeros_like(p)
    return [state[p][name] for p in params], fresh
