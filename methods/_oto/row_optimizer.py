"""Base classes of the row-wise optimizers, which update some parameters channel by channel.

The step is `x <- x - lr * v` with a search direction v (the gradient, its heavy-ball average or
Adam's ratio); a subclass adds its rule per channel. `state_dict` holds everything that a resumed
run needs: moments per parameter as in torch, the state of the channels under "units".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from methods._oto.directions import Adam, check_row_wise, decayed, heavy_ball
from pipeline.training.recipe import OptimizerConfig
from pipeline.units.rows import Rows
from pipeline.units.scratch import KeyedScratch

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class RowOptimizer(Optimizer, ABC):
    """Base of the row-wise optimizers; subclasses define `directions` and `step_rows`.

    Args:
        params: parameters or param groups, as in torch; must cover `rows.params`.
        rows: the channels that are updated row by row; all other parameters take plain steps.
        defaults: hyper-parameters of the param groups, including `lr`.

    Attributes:
        units: state per channel and scalar state: numbers, strings, None and tensors. "step"
            counts the steps.

    Raises:
        ValueError: a parameter of `rows` is not among `params`.
    """

    def __init__(self, params: Params, rows: Rows, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.rows = rows
        self.units: dict[str, Any] = {"step": 0}
        self._row_ids = {id(p) for p in rows.params}
        known = {id(p) for group in self.param_groups for p in group["params"]}
        if not self._row_ids <= known:
            raise ValueError(f"{len(self._row_ids - known)} row parameters are not optimized")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of all row parameters and of all others with a gradient.

        Never synchronises with the device.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.count()
        moves: dict[int, Tensor] = {}
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None or id(p) in self._row_ids]
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in live]
            for p, v in zip(live, self.directions(group, live, grads), strict=True):
                moves[id(p)] = v
        if self.rows.count:
            self.step_rows([moves[id(p)] for p in self.rows.params])
        for group in self.param_groups:
            plain = [p for p in group["params"] if id(p) in moves and id(p) not in self._row_ids]
            if plain:
                self.step_plain(group, plain, [moves[id(p)] for p in plain])
        return loss

    def replay_key(self) -> Hashable | None:
        """Everything that Python decides in the next step; see `Method.replay_key`."""
        return None

    def count(self) -> None:
        """Count one step. A replayed step calls this only, not `step`."""
        self.units["step"] += 1

    def stays_zero(self) -> Tensor | None:
        """Bool per channel: whether a zero channel is permanently zero. None: unknown."""
        return None

    @abstractmethod
    def directions(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        """The direction v of every parameter of one param group; may update their moments."""

    @abstractmethod
    def step_rows(self, moves: list[Tensor]) -> None:
        """Move `rows.params` along `moves`."""

    def step_plain(self, group: dict[str, Any], params: list[Tensor], moves: list[Tensor]) -> None:
        """x <- x - lr * v for parameters outside all rows."""
        torch._foreach_add_(params, moves, alpha=-group["lr"])

    def row_setting(self, key: str) -> Any:
        """A hyper-parameter of the first param group that contains a row parameter."""
        for group in self.param_groups:
            if any(id(p) in self._row_ids for p in group["params"]):
                return group[key]
        return self.param_groups[0][key]

    def move_rows(
        self,
        moves: list[Tensor],
        scale: Tensor,
        pull: Tensor,
        decays: Sequence[float] = (),
        along: Tensor | None = None,
    ) -> None:
        """x <- scale * x - pull * (v + decay * along * x), in place.

        `scale`, `pull` and `along` (1 by default) hold one factor per channel; `decays` holds one
        number per row parameter, or is empty. Entries of a row parameter that belong to no channel
        take the plain step.
        """
        params = self.rows.params
        scales = self.rows.spread(scale, 1.0)
        pulls = self.rows.spread(pull, self.row_setting("lr"))
        if decays:
            shrinks = pulls
            if along is not None:
                shrinks = self.rows.spread(pull * along, self.row_setting("lr"))
            torch._foreach_sub_(scales, torch._foreach_mul(shrinks, list(decays)))
        torch._foreach_mul_(params, scales)
        torch._foreach_addcmul_(params, moves, pulls, value=-1.0)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "units": dict(self.units)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        state = dict(state_dict)
        saved = state.pop("units")
        super().load_state_dict(state)
        # files store no memory layout, but the last bits of a result depend on it
        for p, own in self.state.items():
            for key, value in own.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    own[key] = torch.empty_like(p).copy_(value)
        device = self.rows.entries.device
        self.units = {
            k: v.to(device, copy=True) if isinstance(v, Tensor) else v for k, v in saved.items()
        }


class DirectedRowOptimizer(RowOptimizer):
    """A row-wise optimizer whose direction is that of the recipe's SGD, Adam or AdamW.

    Param groups hold `lr` and `weight_decay`. Coupled weight decay is part of v; AdamW's decoupled
    decay is not.

    Raises:
        ValueError: `optimizer` has no row-wise form.
    """

    def __init__(
        self,
        params: Params,
        rows: Rows,
        optimizer: OptimizerConfig,
        faithful_moments: bool = False,
    ) -> None:
        check_row_wise(optimizer)
        defaults = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
        super().__init__(params, rows, defaults)
        self.direction = optimizer
        self._adam, self._kept = Adam(optimizer.betas, faithful_moments), KeyedScratch()

    @property
    def decoupled(self) -> bool:
        return self.direction.name == "adamw"

    @property
    def counts_in_direction(self) -> bool:
        """Whether v depends on a step number that Python counts: t in Adam's 1 - b^t."""
        return self.direction.name != "sgd"

    def directions(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        if not params:
            return []
        momentum, decay = self.direction.momentum, group["weight_decay"]
        if self.direction.name != "sgd":
            coupled = 0.0 if self.decoupled else decay
            return self._adam(self.state, params, grads, self.units["step"], coupled)
        if momentum:
            return heavy_ball(self.state, params, grads, momentum, decay)
        return decayed(params, grads, decay, self._kept) if decay else grads

    def step_plain(self, group: dict[str, Any], params: list[Tensor], moves: list[Tensor]) -> None:
        if self.decoupled and group["weight_decay"]:
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
        super().step_plain(group, params, moves)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._adam = Adam(self._adam.betas, self._adam.faithful_moments)  # discard its scratch

    def row_decays(self) -> list[float]:
        """Decoupled weight decay of each of `rows.params`; empty if there is none."""
        if not self.decoupled:
            return []
        decay = {id(p): g["weight_decay"] for g in self.param_groups for p in g["params"]}
        decays = [float(decay[id(p)]) for p in self.rows.params]
        return decays if any(decays) else []

    def decay_inner(
        self, square: Tensor, decays: Sequence[float], along: Tensor | None = None
    ) -> Tensor | float:
        """<decay * along * x, x> per channel; `square` is ||x||^2."""
        if not decays:
            return 0.0
        same = len(set(decays)) == 1
        inner = decays[0] * square if same else self.rows.square_norms(weights=decays)
        return inner if along is None else along * inner
