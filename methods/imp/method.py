"""Iterative magnitude pruning and its retraining rules: lottery tickets, rewinding, fine-tuning.

Frankle & Carbin, "The Lottery Ticket Hypothesis", ICLR 2019 (arXiv:1803.03635); Frankle et al.,
"Stabilizing the Lottery Ticket Hypothesis" (arXiv:1903.01611); Renda, Frankle & Carbin, "Comparing
Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020 (arXiv:2003.02389). Round 0 trains
densely; each further round removes the smallest remaining weights and retrains the rest.
Units: weights. Rule: `zeros`.

The whole network is rewound, BatchNorm, biases and classifier included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.registry import register_method
from pipeline.selection.criteria import keep_density
from pipeline.selection.masks import (
    GradientMask,
    Masks,
    Shuffle,
    choose_weights,
    count_of,
    drop_smallest,
    masked_magnitude,
    of_layers,
    shuffled,
)
from pipeline.selection.threshold import kth_smallest
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import Phase, StepContext
from pipeline.training.recipe import Recipe, ScheduleConfig, Strict
from pipeline.training.schedules import EpochSchedule, Schedule, learning_rate, make_schedule
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Rewind = Literal["finetune", "init", "epoch", "lr", "random"]
Rule = Literal["exact", "quantile", "openlth"]


class IMPConfig(Strict):
    """How many weights a round removes, from which layers, and how the rest is retrained.

    `rewind`, with t = `retrain_epochs`, starts every round from
        finetune - current weights, constant at the last learning rate of the schedule
        init - initial weights, schedule from its start
        epoch - weights and schedule of epoch `rewind_epoch` of the recipe
        lr - current weights, the last t epochs of the schedule (learning-rate rewinding)
        random - new random weights, schedule from its start

    Attributes:
        rounds: number of times that weights are removed and the rest is retrained.
        prune_per_round: fraction of the weights still alive that a round removes.
        target: the weight sparsity after the last round, instead of `prune_per_round`.
        scope: remove the smallest weights over all chosen layers (global), of each layer (layer),
            or down to Erdos-Renyi-kernel densities (erk).
        layers: conv prunes convolutions only; all prunes linear layers too.
        ignore: names of layers to leave dense.
        rewind: weights and schedule of a round: current weights at the last learning rate
            (finetune) or with the schedule's last `retrain_epochs` (lr); the initial (init) or new
            random weights (random) with the whole schedule; those of the recipe's `rewind_epoch`
            (epoch).
        retrain_epochs: epochs of a round; none = the recipe's epochs, less `rewind_epoch` for
            finetune, epoch and lr.
        rule: exact removes floor(fraction * alive) weights; quantile keeps what is above the
            linearly interpolated quantile; openlth keeps what is above the sorted entry
            ceil(fraction * alive).
        shuffle: after the last round one more phase, "shuffled", retrains a mask with the same
            counts at random positions (within each layer, or anywhere), as a control for the
            ticket.
        shuffle_seed: seed of these positions.
        layer_rates: with `scope: layer`, rates of single layers by name (Frankle & Carbin 2019
            prune the output layer at half the rate).
    """

    rounds: Annotated[int, Field(ge=1, le=1000)] = 4
    prune_per_round: OpenFraction = 0.2
    target: OpenFraction | None = None
    scope: Literal["global", "layer", "erk"] = "global"
    layers: Literal["conv", "all"] = "conv"
    ignore: tuple[str, ...] = ()
    rewind: Rewind = "epoch"
    retrain_epochs: Annotated[int, Field(ge=0)] | None = None
    rule: Rule = "exact"
    shuffle: Shuffle = "none"
    shuffle_seed: int = 0
    layer_rates: Mapping[str, OpenFraction] = {}

    added_later = ("layer_rates",)

    @model_validator(mode="after")
    def _consistent(self) -> IMPConfig:
        if self.layer_rates and (self.scope != "layer" or self.target is not None):
            raise ValueError(
                "layer_rates: needs scope: layer, and prune_per_round instead of target"
            )
        if self.scope == "erk" and self.rule != "exact":
            raise ValueError(f"scope: erk counts exactly; rule: {self.rule} does not")
        if self.shuffle != "none" and self.rewind in ("finetune", "lr"):
            raise ValueError(
                f"shuffle: {self.shuffle} puts weights back that rewind: {self.rewind} has already "
                "lost; use rewind: init, epoch or random"
            )
        return self

    @property
    def rate(self) -> float:
        """Fraction of the weights alive that one round removes."""
        if self.target is None:
            return self.prune_per_round
        return float(1.0 - (1.0 - self.target) ** (1.0 / self.rounds))


def keep_largest(
    scores: Mapping[str, Tensor], alive: Masks, rate: float, rule: Rule, spared: int = 0
) -> dict[str, Tensor]:
    """One pruning step over all tensors of `scores` together; a subset of `alive`.

    Args:
        spared: number of weights alive outside `scores`; openlth's fraction includes them.
    """
    total = sum(int(alive[name].sum()) for name in scores)
    if rule == "exact":
        return drop_smallest(scores, alive, count_of(rate, total))
    living = [score[alive[name]] for name, score in scores.items()]
    if rule == "quantile":  # what exceeds the interpolated value exceeds the entry below it
        index = count_of(rate, total - 1)
    else:
        index = math.ceil(round(rate * (total + spared), 6))
    threshold = kth_smallest(living, min(index + 1, total))
    return {name: alive[name] & (score > threshold) for name, score in scores.items()}


@register_method("imp", IMPConfig)
class IMP(MethodBase):
    """Phases round-0 ... round-n; the state at the end of each is a named artefact.

    `keep` is the mask with which the current weights were trained. `tightened` is computed from
    them at the end of the round and takes effect in the next phase. An artefact therefore holds the
    mask of its own round, and a finished training can be extended by further rounds.
    """

    granularity = Granularity.UNSTRUCTURED

    def __init__(self, config: IMPConfig) -> None:
        self.config = config
        self.parameters: dict[str, nn.Parameter] = {}
        self.round = 0
        self.keep: dict[str, Tensor] = {}
        self.tightened: dict[str, Tensor] = {}
        self._upcoming: dict[str, Tensor] = {}
        self._plan: PruningPlan | None = None
        self._gradient_mask: GradientMask | None = None

    def extendable(self) -> tuple[str, ...]:
        """`rounds`, unless `target` makes the rate depend on it or a shuffled phase comes last."""
        fixed = self.config.target is None and self.config.shuffle == "none"
        return ("rounds",) if fixed else ()

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        later = [f"round-{k}" for k in range(1, self.config.rounds + 1)]
        if self.config.shuffle != "none":
            later.append("shuffled")
        return (
            Phase("round-0", recipe.epochs, keep=True),
            *(_retraining(name, self.config, recipe) for name in later),
        )

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        self.parameters = dict(model.named_parameters())
        self.names = choose_weights(model, units, self.config.layers, self.config.ignore)
        self._own_rates = of_layers(self.config.layer_rates, self.names, "methods.imp.layer_rates")
        everywhere = choose_weights(model, units, self.config.layers)
        self.spared = sum(self.parameters[n].numel() for n in set(everywhere) - set(self.names))
        self.round, self.tightened = 0, {}
        self.keep = {
            name: torch.ones_like(self.parameters[name], dtype=torch.bool) for name in self.names
        }
        self._refresh()

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        """A phase starts with a fresh optimizer and the mask from the end of the phase before."""
        number = self._number(phase)
        if number != self.round:
            self.round, self.keep, self.tightened = number, self._upcoming, {}
            self._refresh()
        self._gradient_mask = GradientMask(self.parameters, self.keep) if number else None
        return super().optimizer(model, phase, recipe)

    def schedule(self, optimizer: Optimizer, phase: Phase, recipe: Recipe) -> Schedule:
        if self.config.rewind != "finetune" or self._number(phase) == 0:
            return make_schedule(optimizer, recipe, phase.lr_epoch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.schedule, group["lr"], phase.lr_epoch, recipe.epochs)
        return EpochSchedule(optimizer, ScheduleConfig(name="constant"), recipe.epochs)

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        if self._gradient_mask is not None:
            self._gradient_mask.apply()

    @torch.no_grad()
    def end_phase(self, model: nn.Module, phase: Phase) -> None:
        if phase.name != "shuffled":
            magnitude = {name: self.parameters[name].detach().abs() for name in self.names}
            self.tightened = self._tighten(magnitude)
            self._refresh()

    def _tighten(self, magnitude: dict[str, Tensor]) -> dict[str, Tensor]:
        rate, rule = self.config.rate, self.config.rule
        if self.config.scope == "global":
            return keep_largest(magnitude, self.keep, rate, rule, self.spared)
        if self.config.scope == "erk":
            return keep_density(magnitude, self.keep, (1.0 - rate) ** (self.round + 1), "erk")
        kept: dict[str, Tensor] = {}
        for name in self.names:
            own = self._own_rates.get(name, rate)
            kept |= keep_largest({name: magnitude[name]}, self.keep, own, rule)
        return kept

    def _number(self, phase: Phase) -> int:
        shuffled_phase = phase.name == "shuffled"
        return self.config.rounds + 1 if shuffled_phase else int(phase.name.removeprefix("round-"))

    def _refresh(self) -> None:
        """Derive the plan and, after the end of a phase, the mask of the next one."""
        self._upcoming = {}
        if self.tightened and self.round < self.config.rounds:
            self._upcoming = self.tightened
        elif self.tightened and self.config.shuffle != "none":
            self._upcoming = shuffled(self.keep, self.config.shuffle, self.config.shuffle_seed)
        in_force = self._upcoming or (self.keep if self.round else {})
        self._plan = PruningPlan(self.granularity, in_force) if in_force else None

    def plan(self) -> PruningPlan | None:
        return self._plan

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        """|w| of the weights alive in this round, 0 for the others."""
        return masked_magnitude(model, units, self.keep)

    def state_dict(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "rate": self.config.rate,
            "keep": dict(self.keep),
            "tightened": dict(self.tightened),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["rate"] != self.config.rate:
            raise ValueError(
                f"methods.imp: this training removed {state['rate']:.6g} of its weights per round, "
                f"the configuration says {self.config.rate:.6g}; with `target`, rounds cannot be "
                "added: give prune_per_round instead, or train anew"
            )
        self.round = int(state["round"])
        self.keep = self._on_device(state["keep"])
        self.tightened = self._on_device(state["tightened"])
        self._refresh()

    def _on_device(self, masks: Masks) -> dict[str, Tensor]:
        return {name: mask.to(self.parameters[name].device) for name, mask in masks.items()}


def _retraining(name: str, config: IMPConfig, recipe: Recipe) -> Phase:
    """The phase of a round after the first: its length, initial weights and learning rate.

    Raises:
        ValueError: the rule asks for more epochs of the schedule than the recipe has.
    """
    rule, epochs = config.rewind, config.retrain_epochs
    if rule == "init":
        return Phase(name, recipe.epochs if epochs is None else epochs, "init", keep=True)
    if rule == "random":
        return Phase(name, recipe.epochs if epochs is None else epochs, "random", keep=True)
    back = recipe.epochs - recipe.rewind_epoch if epochs is None else epochs
    if back < 0 or (rule == "lr" and back > recipe.epochs):
        raise ValueError(
            f"methods.imp: rewind: {rule} needs train.rewind_epoch ({recipe.rewind_epoch}) and "
            f"retrain_epochs ({epochs}) within train.epochs ({recipe.epochs})"
        )
    if rule == "epoch":
        return Phase(name, back, "rewind", recipe.rewind_epoch, keep=True)
    lr_epoch = recipe.epochs - back if rule == "lr" else max(recipe.epochs - 1, 0)
    return Phase(name, back, "current", lr_epoch, keep=True)
