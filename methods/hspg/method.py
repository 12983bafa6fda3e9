"""HSPG: half-space stochastic projected gradient, the optimizer of "Only Train Once".

Chen et al., Only Train Once: A One-Shot Neural Network Training And Pruning Framework, NeurIPS
2021 (https://arxiv.org/abs/2107.07467). Minimises f(x) + penalty * sum of ||x_g|| over ZIGs:
sub-gradient steps in the warm-up, then a half-space projection sets whole ZIGs to exactly zero, so
that removing them does not change the output. Units: channels. Target rule: `zeros`.

Differences from the authors' program, unless `faithful`: the upper bound on a group's sparsity
limits how many more channels are projected (theirs projects the excess over the bound, at random);
plain parameters have momentum in the warm-up too. Unless `split_norms`, there is one ZIG per
channel, BatchNorm included (their VGG16-BN splits it).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from methods._oto.directions import heavy_ball
from methods._oto.row_method import RowConfig, RowMethod
from methods._oto.row_optimizer import Params, RowOptimizer
from pipeline.registry import register_method
from pipeline.training.phases import EpochStats, Phase
from pipeline.training.recipe import Fraction, NonNegative, Recipe
from pipeline.units.groups import ChannelGroup
from pipeline.units.plan import PruningPlan
from pipeline.units.rows import Rows, named_parameters

SMALL = 1e-6  # in x / (||x|| + SMALL); also, a milestone sets a penalty <= SMALL to 0


class HSPGConfig(RowConfig):
    """Settings of HSPG; defaults are those of the authors' ResNet50 on CIFAR-10.

    Attributes:
        penalty: lambda, the weight of the group norms.
        epsilon: half-space parameter in [0, 1); larger projects more.
        upper_group_sparsity: largest fraction of zero channels in a group; 1 = no bound.
        epsilon_linear: `epsilon` in groups whose producers are all linear layers with one row per
            channel; none = `epsilon`.
        upper_group_sparsity_linear: `upper_group_sparsity` in the same groups; none = the general
            value.
        adapt_epsilon_steps: interval, in half-space steps, at which epsilon of these groups is
            adapted; 0 = never.
        warmup_epochs: epochs without projection; none = `warmup_fraction` of all epochs.
        warmup_fraction: fraction of all epochs without projection, if `warmup_epochs` is none.
        momentum: heavy ball on the whole sub-gradient, penalty included.
        penalty_milestones: 0-based epochs before which the penalty is divided by 10, or set to 0
            once it is at most 1e-6.
        faithful: behave like the authors' program where it differs from the paper (see the card).
        split_norms: make a channel's producers and its norms two groups, penalised and projected
            separately, as in the authors' VGG16-BN. Only a channel that is zero in both can be
            removed.
    """

    penalty: NonNegative = 1e-3
    epsilon: Fraction = 0.0
    epsilon_linear: Fraction | None = None
    warmup_epochs: Annotated[int, Field(ge=0)] | None = None
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    upper_group_sparsity: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    upper_group_sparsity_linear: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    momentum: Fraction = 0.0
    penalty_milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    adapt_epsilon_steps: Annotated[int, Field(ge=0)] = 0
    faithful: bool = False
    split_norms: bool = False

    added_later = ("split_norms",)


def penalty_at(config: HSPGConfig, epoch: int) -> float:
    """The penalty in force during 0-based `epoch` of the whole training."""
    penalty = config.penalty
    for milestone in config.penalty_milestones:
        if epoch >= milestone:
            penalty = 0.0 if penalty <= SMALL * (1 + 1e-9) else penalty / 10
    return penalty


def is_linear(group: ChannelGroup, parameters: Mapping[str, Tensor]) -> bool:
    """Whether all producers are linear layers with one row per channel, not one per head."""
    weights = [s for s in group.slices if s.role == "producer" and s.tensor in parameters]
    return bool(weights) and all(
        parameters[s.tensor].ndim <= 2 and s.index.shape[1] == 1 for s in weights
    )


class HSPG(RowOptimizer):
    """One phase of HSPG over `rows`; parameters of `params` outside `rows` take plain SGD steps.

    Args:
        half_space: False = warm-up, sub-gradient steps without projection.
    """

    def __init__(
        self, params: Params, rows: Rows, lr: float, config: HSPGConfig, half_space: bool = True
    ) -> None:
        defaults = {"lr": lr, "momentum": config.momentum, "penalty": config.penalty}
        super().__init__(params, rows, defaults)
        self.config, self.half_space = config, half_space
        linear = [is_linear(group, rows.named) for group in rows.groups]
        self._linear = torch.tensor(linear, dtype=torch.bool, device=rows.entries.device)
        self._bound(self._choose(config.upper_group_sparsity_linear, config.upper_group_sparsity))
        self.units["epsilon"] = self._choose(config.epsilon_linear, config.epsilon)
        self.units["sparsity_seen"] = self.units["epsilon"].new_zeros(())

    def _choose(self, linear: float | None, general: float) -> Tensor:
        """One number per group."""
        values = torch.full_like(self._linear, general, dtype=torch.float64)
        return values if linear is None else values.masked_fill(self._linear, linear)

    def _bound(self, upper: Tensor) -> None:
        self._upper = upper
        self._room = torch.floor(upper * self.rows.group_size + 1e-9)
        self._capped = bool((upper < 1).any())

    def replay_key(self) -> Hashable | None:
        every = self.config.adapt_epsilon_steps if self.half_space else 0
        return None if every and (self.units["step"] + 1) % every == 0 else ()

    def stays_zero(self) -> Tensor | None:
        return torch.ones_like(self.rows.entries).bool() if self.half_space else None

    def directions(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        # the momentum of rows averages the penalised sub-gradient: see step_rows
        off = self.config.faithful and not self.half_space
        plain = [i for i, p in enumerate(params) if id(p) not in self._row_ids]
        if group["momentum"] and plain and not off:
            chosen, moved = [params[i] for i in plain], [grads[i] for i in plain]
            averages = heavy_ball(self.state, chosen, moved, group["momentum"])
            for i, average in zip(plain, averages, strict=True):
                grads[i] = average
        return grads

    def step_rows(self, moves: list[Tensor]) -> None:
        """x^ = x - lr * (d + penalty * x / ||x||), then the half-space projection."""
        rows, lr = self.rows, self.row_setting("lr")
        square = rows.square_norms()
        shrink = self.row_setting("penalty") / (square.sqrt() + SMALL)
        momentum = self.row_setting("momentum")
        if momentum:
            moves = heavy_ball(self.state, rows.params, moves, momentum)
            torch._foreach_addcmul_(moves, rows.params, rows.spread(shrink, 0.0))
            shrink = torch.zeros_like(shrink)
        scale = 1.0 - lr * shrink
        if not self.half_space:
            torch._foreach_mul_(rows.params, rows.spread(scale, 1.0))
            torch._foreach_add_(rows.params, moves, alpha=-lr)
            return
        inner = scale * square - lr * rows.dots(moves, rows.params)
        keep = self._survivors(square, inner).to(square.dtype)
        self.move_rows(moves, scale * keep, lr * keep)
        every = self.config.adapt_epsilon_steps
        if every and self.units["step"] % every == 0:
            self._adapt_epsilon(rows.square_norms() == 0)

    def _survivors(self, square: Tensor, inner: Tensor) -> Tensor:
        """Channels that are neither zero already nor projected; `inner` is <x^, x>."""
        zero = square == 0
        epsilon = self.units["epsilon"].to(square.dtype)[self.rows.group_of]
        projected = (inner < epsilon * square) & ~zero
        if self._capped:
            allowed = self._faithful_room if self.config.faithful else self._room_left
            keys = torch.where(projected, self._order(square), torch.inf)
            rank = self.rows.rank_in_groups(keys)
            projected &= rank < allowed(zero, projected)[self.rows.group_of]
        return ~(projected | zero)

    def _order(self, square: Tensor) -> Tensor:
        """Sort key of candidates if not all may be projected: smallest first (faithful: random)."""
        return torch.rand_like(square) if self.config.faithful else square

    def _room_left(self, zero: Tensor, projected: Tensor) -> Tensor:
        del projected
        return self._room - self.rows.sum_groups(zero.double())

    def _faithful_room(self, zero: Tensor, projected: Tensor) -> Tensor:
        """The authors' bound: projects int(n * (after - upper)) channels, the excess over it."""
        size = self.rows.group_size
        before = self.rows.sum_groups(zero.double()) / size
        after = self.rows.sum_groups((zero | projected).double()) / size
        excess = torch.floor(size * (after - self._upper))
        some = torch.where(after <= self._upper, size.double(), excess)
        return torch.where(before >= self._upper, 0.0, some)

    def _adapt_epsilon(self, zero: Tensor) -> None:
        """The authors' rule for BERT; the new epsilon applies from the next step on.

        If the sparsity after this step has stalled, epsilon of the linear groups rises by 0.1 while
        these groups together are below their upper bound, and is 0 otherwise.
        """
        epsilon, adaptive = self.units["epsilon"], self._linear
        sparsity = zero.double().mean()
        among = adaptive[self.rows.group_of]
        fraction = (zero & among).double().sum() / among.double().sum().clamp(min=1)
        raised = torch.where(fraction < self._upper, (epsilon + 0.1).clamp(max=0.999), 0.0)
        stalled = sparsity <= self.units["sparsity_seen"] + 0.01
        epsilon.copy_(
            torch.where(adaptive & stalled, raised, epsilon)
        )  # in place: a captured graph reads it
        self.units["sparsity_seen"].copy_(sparsity)


def without_norms(groups: Iterable[ChannelGroup]) -> Iterator[ChannelGroup]:
    """Split every group in two: its producers, and its norms, named "<group> (norms)"."""
    for group in groups:
        norms = tuple(s for s in group.slices if s.role == "norm")
        others = tuple(s for s in group.slices if s.role != "norm")
        yield replace(group, slices=others)
        if norms:
            yield replace(group, name=f"{group.name} (norms)", slices=norms)


_CIFAR = {"epochs": 300, "batch_size": 64}
_BERT = {"warmup_epochs": 2, "penalty_milestones": (6, 10, 14), "adapt_epsilon_steps": 200}
_SQUAD = {"epochs": 18, "batch_size": 32, "clip_norm": 1.0}


def _preset(method: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": {"penalty": 1e-3, **method},
        "train": {"optimizer": {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}, **train},
    }


def _steps(*milestones: int) -> dict[str, Any]:
    return {"schedule": {"milestones": milestones}}


PRESETS: Mapping[str, dict[str, Any]] = {
    "vgg16-cifar10": _preset(
        {"epsilon_linear": 0.99, "warmup_epochs": 75}, _CIFAR | _steps(75, 150, 225)
    ),
    "vgg16-bn-cifar10": _preset(
        {"penalty": 5e-4, "epsilon_linear": 0.9, "warmup_epochs": 75},
        _CIFAR | _steps(75, 150, 250),
    ),
    "resnet50-cifar10": _preset({"warmup_epochs": 75}, _CIFAR | _steps(75, 150, 225)),
    "resnet50-imagenet": _preset(
        {"warmup_epochs": 30, "penalty_milestones": (35, 40, 45), "groups": "inner"},
        {"epochs": 120, "batch_size": 256} | _steps(30, 60, 90),
    ),
    **{
        f"bert-squad-{percent}": _preset(
            _BERT | {"upper_group_sparsity_linear": percent / 100}, _SQUAD | _steps(10)
        )
        for percent in (10, 30, 50, 70, 90)
    },
}
"""The authors' configurations, each as blocks for `methods.hspg` and `train`."""


@register_method("hspg", HSPGConfig)
class HSPGMethod(RowMethod[HSPGConfig, HSPG]):
    """Warm-up and half-space phases on one learning-rate schedule."""

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        asked = self.config.warmup_epochs
        warmup = math.floor(self.config.warmup_fraction * recipe.epochs) if asked is None else asked
        warmup = min(warmup, recipe.epochs)
        first = (Phase("warmup", warmup),) if warmup else ()
        return (*first, Phase("half-space", recipe.epochs - warmup, lr_epoch=warmup))

    def rows(self, model: nn.Module) -> Rows:
        if not self.config.split_norms:
            return super().rows(model)
        return Rows(named_parameters(model), without_norms(self._groups))

    def permanently_zero(self, model: nn.Module) -> PruningPlan | None:
        """None with `split_norms`, since one half of a channel may be zero without the other."""
        return None if self.config.split_norms else super().permanently_zero(model)

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        live = [p for p in model.parameters() if p.requires_grad]
        lr, half_space = recipe.optimizer.lr, phase.name != "warmup"
        self.stepped = HSPG(live, self.rows(model), lr, self.config, half_space)
        self._set_penalty(phase.lr_epoch)
        return self.stepped

    def _set_penalty(self, epoch: int) -> None:
        if self.stepped is not None:
            for group in self.stepped.param_groups:
                group["penalty"] = penalty_at(self.config, epoch)

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        self._set_penalty(stats.epoch + 1)
        return super().end_epoch(model, stats)
