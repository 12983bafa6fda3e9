"""SFW: train with Stochastic Frank-Wolfe inside a K-sparse polytope, then prune to any sparsity.

Miao, Luo, Chen, Chen, Liu, Wang: "Learning Pruning-Friendly Networks via Frank-Wolfe: One-Shot,
Any-Sparsity, and No Retraining", ICLR 2022; the optimizer is that of Pokutta, Spiegel, Zimmer,
arXiv 2010.07243. Every step moves each tensor towards a vertex of its set, so all weights shrink a
little and only the K with the largest averaged gradient grow. Units: weights; rule: `fraction`.
Differences from the authors' code, each with its switch, are in docs/methods/sfw.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim import Optimizer

from methods.sfw.constraints import (
    ConvexSet,
    KSparsePolytope,
    LpBall,
    Unconstrained,
    from_plain,
    make_feasible,
    polytope_k,
)
from methods.sfw.init_norms import NormSource, init_norms
from methods.sfw.learned_scale import BATCHES_PER_ITERATION, ITERATIONS, learn_scales
from methods.sfw.loss_trend import LossTrendSchedule
from pipeline.registry import register_method
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import Phase
from pipeline.training.recipe import Fraction, Positive, Recipe, Strict
from pipeline.training.schedules import Schedule, make_schedule
from pipeline.units.groups import Units

Rescale = Literal["gradient", "diameter", "none"]


class SFWConfig(Strict):
    """Settings of SFW; the defaults are the paper's where the authors' README states them.

    Attributes:
        constraint: feasible set of each tensor; none is SGD with the same averaged gradient and
            schedule.
        k: nonzeros per vertex of k_sparse are max(k, k_frac n), at most the n entries of the
            tensor.
        k_frac: nonzeros per vertex as a fraction of the n entries of the tensor; see `k`.
        mode: what `size` is: the radius, the diameter, or the L2 norm of the vertices in units of
            the tensor's norm at initialisation.
        size: size of the feasible set; see `mode`.
        init_norms: where the norm at initialisation comes from; measured_by_shape is the authors'
            code.
        constrain: all parameters, as the authors do, or only convolution and linear weights; the
            others then take unconstrained steps along the averaged gradient.
        rescale: gradient gives every step the length lr ||m||, as SGD has; diameter divides lr by
            the diameter; none uses lr as it is.
        lr: initial learning rate, instead of the recipe's.
        momentum: weight of the old average in the averaged gradient m.
        schedule: learning rate by thirds (decrease_3), at 90 and 130 (decrease_3_180), by thirds
            and by the trend of the loss (dynamic_change), constant (keep), or the recipe's.
        dynamic_loss: the loss that dynamic_change uses; the authors' code uses the last batch.
        sfw_init: learn a scale per tensor first (SFW-Init) over `sfw_init_iterations` iterations.
        sfw_init_iterations: optimizer steps of SFW-Init.
        sfw_init_reproject: make the scaled weights feasible again; the authors' code does not.
    """

    constraint: Literal["k_sparse", "l1", "l2", "linf", "none"] = "k_sparse"
    k: Annotated[int, Field(ge=1)] | None = 10
    k_frac: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.05
    mode: Literal["radius", "diameter", "initialization"] = "initialization"
    size: Positive = 15.0
    init_norms: NormSource = "closed_form"
    constrain: Literal["all", "weights"] = "all"
    rescale: Rescale = "gradient"
    lr: Positive = 1.0
    momentum: Fraction = 0.9
    schedule: Literal["keep", "decrease_3", "decrease_3_180", "dynamic_change", "recipe"] = (
        "decrease_3"
    )
    dynamic_loss: Literal["epoch_mean", "last_batch"] = "epoch_mean"
    sfw_init: bool = False
    sfw_init_iterations: Annotated[int, Field(ge=1)] = ITERATIONS
    sfw_init_reproject: bool = True

    @model_validator(mode="after")
    def _some_k(self) -> SFWConfig:
        if self.constraint == "k_sparse" and self.k is None and self.k_frac is None:
            raise ValueError("k_sparse needs k or k_frac")
        return self


class SFW(Optimizer):
    """Stochastic Frank-Wolfe with averaged gradients; every tensor has its own step size.

        m <- rho m + (1 - rho) g          (m = g in the first step)
        v  = argmin_{v in C} <m, v>
        w <- w + gamma (v - w),  gamma = clip(lr f, 0, 1)
        f  = ||m|| / ||w - v||  ("gradient"),  1 / diameter(C)  ("diameter"),  1  ("none")

    A group's `constraint` (`ConvexSet.plain()`) holds for each of its tensors; where it is
    unconstrained, w <- w - lr m. A tensor without a gradient does not change.

    Args:
        params: param groups, each with its own `constraint`.
        lr: with "gradient" the step length in units of ||m||, not confined to [0, 1].
        momentum: rho in [0, 1).
        rescale: the factor f.

    Raises:
        ValueError: a setting out of range or an unknown constraint kind.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        rescale: Rescale = "gradient",
    ) -> None:
        if lr < 0.0 or not 0.0 <= momentum < 1.0:
            raise ValueError(f"SFW: lr {lr} must be >= 0 and momentum {momentum} in [0, 1)")
        if rescale not in ("gradient", "diameter", "none"):
            raise ValueError(f"SFW: rescale {rescale!r} is not gradient, diameter or none")
        free = Unconstrained().plain()
        defaults = {"lr": lr, "momentum": momentum, "rescale": rescale, "constraint": free}
        super().__init__(params, defaults)
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for group in self.param_groups:
            from_plain(group["constraint"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            feasible = from_plain(group["constraint"])
            for w in group["params"]:
                if w.grad is not None:
                    m = self._average(self.state[w], w.grad, group["momentum"])
                    move(w, m, feasible, group, self._memory(w))
        return loss

    def _memory(self, w: Tensor) -> Tensor | None:
        """Scratch shared by the vertices of all tensors: allocating it costs as much as a step."""
        dense = w.is_contiguous() or w.is_contiguous(memory_format=torch.channels_last)
        if not dense:
            return None
        key = (w.device, w.dtype)
        if key not in self._buffers or self._buffers[key].numel() < w.numel():
            largest = max(p.numel() for group in self.param_groups for p in group["params"])
            self._buffers[key] = w.new_empty(largest)
        return self._buffers[key].as_strided(w.shape, w.stride())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._buffers = {}

    @staticmethod
    def _average(state: dict[str, Tensor], gradient: Tensor, momentum: float) -> Tensor:
        if momentum == 0.0:
            return gradient
        if "momentum" in state:
            return state["momentum"].lerp_(gradient, 1.0 - momentum)
        state["momentum"] = gradient.clone()
        return state["momentum"]


def move(
    w: Tensor, m: Tensor, feasible: ConvexSet, group: Mapping[str, Any], memory: Tensor | None
) -> None:
    """One Frank-Wolfe step of `w` in place along the averaged gradient `m`."""
    if isinstance(feasible, Unconstrained):
        w.add_(m, alpha=-group["lr"])
        return
    gap = feasible.lmo(m, memory).sub_(w)  # v - w
    if group["rescale"] == "gradient":
        distance = vector_norm(gap).clamp_min_(torch.finfo(w.dtype).tiny)  # 0 at the vertex
        w.addcmul_(gap, vector_norm(m).mul_(group["lr"]).div_(distance).clamp_(0.0, 1.0))
        return
    factor = 1.0 / feasible.diameter if group["rescale"] == "diameter" else 1.0
    w.add_(gap, alpha=min(factor * group["lr"], 1.0))


def feasible_sets(
    model: nn.Module, config: SFWConfig, weights: Iterable[str]
) -> dict[str, ConvexSet]:
    """The feasible set of every parameter, by name; `weights` are the layer weights' names.

    Raises:
        ValueError: a vertex of some tensor would have no nonzero.
    """
    named = dict(model.named_parameters())
    norms = dict.fromkeys(named, 1.0)
    if config.mode == "initialization":
        norms = init_norms(model, config.init_norms)
    bound = set(named) if config.constrain == "all" else set(weights)
    return {
        name: _set_of(config, name, p.numel(), norms[name]) if name in bound else Unconstrained()
        for name, p in named.items()
    }


def _set_of(config: SFWConfig, name: str, n: int, norm: float) -> ConvexSet:
    if config.constraint == "none":
        return Unconstrained()
    size = 2.0 * config.size * norm if config.mode == "initialization" else config.size
    if config.constraint != "k_sparse":
        p = float(config.constraint.removeprefix("l"))  # "l1", "l2", "linf"
        return LpBall(p, n, size) if config.mode == "radius" else LpBall.of_diameter(p, n, size)
    k = polytope_k(n, config.k, config.k_frac)
    if k < 1:
        raise ValueError(
            f"params.yaml: methods.sfw.k_frac: {config.k_frac} of the {n} entries of {name!r} is "
            "less than one; set methods.sfw.k, or constrain: weights"
        )
    if config.mode == "radius":
        return KSparsePolytope(k, size)
    return KSparsePolytope.of_diameter(k, size)


@register_method("sfw", SFWConfig)
class SFWMethod(MethodBase):
    """Makes the weights feasible, then trains with SFW; the saliency is the magnitude."""

    def __init__(self, config: SFWConfig) -> None:
        self.config = config
        self.sets: dict[str, ConvexSet] = {}

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        """
        Raises:
            ValueError: SFW-Init is on and there are no batches to learn from.
        """
        self.sets = feasible_sets(model, self.config, units.weights)
        make_feasible(model, self.sets)
        if not self.config.sfw_init:
            return
        if batches is None:
            raise ValueError(
                "params.yaml: methods.sfw.sfw_init: learning the initial scales needs training "
                f"batches ({BATCHES_PER_ITERATION} an iteration); set it to false without data"
            )
        learn_scales(model, self.sets, batches, self.config.lr, self.config.sfw_init_iterations)
        if self.config.sfw_init_reproject:
            make_feasible(model, self.sets)

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> SFW:
        """One param group per tensor, which holds its constraint."""
        groups = [
            {"params": [p], "name": name, "constraint": self.sets[name].plain()}
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
        config = self.config
        return SFW(groups, config.lr, config.momentum, config.rescale)

    def schedule(self, optimizer: Optimizer, phase: Phase, recipe: Recipe) -> Schedule:
        if self.config.schedule == "recipe":
            return make_schedule(optimizer, recipe, start_epoch=phase.lr_epoch)
        loss = "loss" if self.config.dynamic_loss == "epoch_mean" else "last_loss"
        scheme = self.config.schedule
        return LossTrendSchedule(optimizer, scheme, recipe.epochs, loss, phase.lr_epoch)
