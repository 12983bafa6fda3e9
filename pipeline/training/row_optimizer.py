"""What the row-wise optimizers have in common: they move some parameters channel by channel.

The step is `x <- x - lr * v` with a direction v (the gradient, its heavy-ball average, Adam's); the
subclass decides per channel what else happens. Everything a resumed run needs is in `state_dict`:
moments per parameter as in torch, per-channel memory under "units".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.training.recipe import Recipe
from pipeline.units.rows import Rows

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class RowOptimizer(Optimizer, ABC):
    """Base of the row-wise optimizers; subclasses define `directions` and `step_rows`.

    Args:
        params: parameters or param groups, as in torch; must cover `rows.params`.
        rows: the channels that are treated row by row; other parameters take plain steps.
        defaults: hyper-parameters of the param groups, `lr` among them.

    Attributes:
        units: per-channel and scalar memory: numbers, strings, None and tensors. "step" counts
            the calls of `step`.

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
        """One step of all parameters that have a gradient; never waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.units["step"] += 1
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

    @abstractmethod
    def directions(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        """v of the parameters of one param group; may update their moments."""

    @abstractmethod
    def step_rows(self, moves: list[Tensor]) -> None:
        """Move `rows.params` along `moves`."""

    def step_plain(self, group: dict[str, Any], params: list[Tensor], moves: list[Tensor]) -> None:
        """x <- x - lr * v for parameters outside all rows."""
        torch._foreach_add_(params, moves, alpha=-group["lr"])

    def row_setting(self, key: str) -> Any:
        """A hyper-parameter of the (first) param group that holds rows."""
        for group in self.param_groups:
            if any(id(p) in self._row_ids for p in group["params"]):
                return group[key]
        return self.param_groups[0][key]

    def move_rows(self, moves: list[Tensor], scale: Tensor, pull: Tensor) -> None:
        """x <- scale * x - pull * v with one factor each per channel, in place.

        Positions of a row parameter that belong to no channel take the plain step.
        """
        params = self.rows.params
        torch._foreach_mul_(params, self.rows.spread(scale, 1.0))
        pulls = self.rows.spread(pull, self.row_setting("lr"))
        torch._foreach_addcmul_(params, moves, pulls, value=-1.0)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "units": dict(self.units)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        state = dict(state_dict)
        saved = state.pop("units")
        super().load_state_dict(state)
        device = self.rows.entries.device
        self.units = {
            k: v.to(device, copy=True) if isinstance(v, Tensor) else v for k, v in saved.items()
        }


@dataclass(frozen=True)
class DirectionOptions:
    """How a gradient becomes a direction v.

    Attributes:
        variant: "sgd", "adam" or "adamw".
        momentum, dampening: heavy ball of "sgd".
        betas: moments of "adam" and "adamw".
        faithful_moments: start Adam's moments at g and g^2 instead of (1-b) g and (1-b) g^2, as
            the OTO programs do: steps much smaller than Adam's for the first thousands of calls.
    """

    variant: str = "sgd"
    momentum: float = 0.0
    dampening: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    faithful_moments: bool = False


class DirectedRowOptimizer(RowOptimizer):
    """A row-wise optimizer whose direction is that of SGD, Adam or AdamW.

    Param groups carry `lr` and `weight_decay`. Coupled decay is part of v; AdamW's is not.
    """

    def __init__(
        self, params: Params, rows: Rows, lr: float, options: DirectionOptions, decay: float = 0.0
    ) -> None:
        super().__init__(params, rows, {"lr": lr, "weight_decay": decay})
        self.direction_options = options

    @property
    def decoupled(self) -> bool:
        return self.direction_options.variant == "adamw"

    def directions(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        if not params:
            return []
        options, decay = self.direction_options, group["weight_decay"]
        if options.variant == "sgd" and options.momentum:
            return heavy_ball(self.state, params, grads, options, decay)
        if decay and not self.decoupled:
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        if options.variant == "sgd":
            return grads
        return adam(self.state, params, grads, options, self.units["step"])

    def step_plain(self, group: dict[str, Any], params: list[Tensor], moves: list[Tensor]) -> None:
        if self.decoupled and group["weight_decay"]:
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
        super().step_plain(group, params, moves)

    def with_decay(self, moves: list[Tensor]) -> list[Tensor]:
        """Of the rows: v + decay * x where the decay is decoupled, else v."""
        decays = {id(p): g["weight_decay"] for g in self.param_groups for p in g["params"]}
        factors = [decays[id(p)] for p in self.rows.params]
        if not self.decoupled or not any(factors):
            return moves
        return list(torch._foreach_add(moves, torch._foreach_mul(self.rows.params, factors)))


State = MutableMapping[Any, dict[str, Any]]


def heavy_ball(
    state: State,
    params: list[Tensor],
    grads: list[Tensor],
    options: DirectionOptions,
    decay: float = 0.0,
) -> list[Tensor]:
    """b <- q at first, then momentum * b + (1 - dampening) * q, with q = gradient + decay * x.

    The buffers are kept in a torch optimizer's `state` and returned themselves.
    """
    buffers, fresh = _moment(state, "momentum_buffer", params)
    share = 1.0 if fresh else 1.0 - options.dampening
    torch._foreach_mul_(buffers, options.momentum)
    torch._foreach_add_(buffers, grads, alpha=share)
    if decay:
        torch._foreach_add_(buffers, params, alpha=share * decay)
    return buffers


def adam(
    state: State,
    params: list[Tensor],
    grads: list[Tensor],
    options: DirectionOptions,
    step: int,
) -> list[Tensor]:
    """m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + 1e-8) at the 1-based step t."""
    b1, b2 = options.betas
    mean, fresh = _moment(state, "exp_avg", params)
    square, _ = _moment(state, "exp_avg_sq", params)
    whole = fresh and options.faithful_moments
    torch._foreach_lerp_(mean, grads, 1.0 if whole else 1.0 - b1)
    torch._foreach_mul_(square, b2)
    torch._foreach_addcmul_(square, grads, grads, value=1.0 if whole else 1.0 - b2)
    # both corrections go into the denominator, so that one list is allocated and not three
    first = 1.0 - b1**step
    ratio = torch._foreach_sqrt(square)
    torch._foreach_mul_(ratio, first / math.sqrt(1.0 - b2**step))
    torch._foreach_add_(ratio, 1e-8 * first)
    torch._foreach_reciprocal_(ratio)
    torch._foreach_mul_(ratio, mean)
    return list(ratio)


def _moment(state: State, name: str, params: list[Tensor]) -> tuple[list[Tensor], bool]:
    """The buffers of `params`, and whether they have just been made."""
    fresh = name not in state[params[0]]
    for p in params:
        if name not in state[p]:
            state[p][name] = torch.zeros_like(p)
    return [state[p][name] for p in params], fresh


def direction_options(recipe: Recipe, faithful: bool) -> DirectionOptions:
    """The recipe's optimizer as a direction.

    Raises:
        ValueError: the recipe's optimizer has no row-wise form.
    """
    config = recipe.optimizer
    if config.name == "adadelta" or (config.nesterov and config.name == "sgd"):
        raise ValueError(
            f"train.optimizer: {config.name!r} with nesterov={config.nesterov} has no row-wise "
            "form (use sgd without nesterov, adam or adamw)"
        )
    return DirectionOptions(
        config.name, config.momentum, betas=config.betas, faithful_moments=faithful
    )
