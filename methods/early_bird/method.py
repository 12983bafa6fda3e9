"""Early-bird tickets: network slimming that detects when the pruning mask has stabilised.

You et al., "Drawing Early-Bird Tickets: Towards More Efficient Training of Deep Networks", ICLR
2020 (arXiv:1909.11957). After every epoch a mask is drawn at each ratio: it drops the channels with
the smallest BatchNorm scales. A ticket emerges when recent masks are close in Hamming distance.
Units: channels of a group. Rule: `fraction`, at `ratio`.

Differences from the authors' code: exactly floor(ratio * N) channels are dropped (it drops one
more); masks are drawn after an epoch, never from the constant initial scales; no mask is drawn if
the cut falls between equal nonzero scales. Masks cover the channels of prunable groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.registry import register_method
from pipeline.selection.criteria import add_l1_subgradient, scale_saliency, trained_scales
from pipeline.selection.masks import count_of, drop_smallest
from pipeline.selection.threshold import kth_smallest
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import NonNegative, Positive, Recipe, Strict
from pipeline.training.schedules import Schedule, make_schedule
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Window = Literal["history", "consecutive"]


class EarlyBirdConfig(Strict):
    """Slimming's settings, and the rule for when a ticket has emerged.

    For every ratio, the weights at which the ticket emerges are snapshotted as "ticket-<ratio>".

    Attributes:
        penalty: weight of the L1 norm of the BatchNorm scales gamma, as in slimming.
        gamma_init: initial value of the scales; none leaves them unchanged.
        across: score of a channel with several BatchNorms (a residual stream): mean or max of their
            |gamma|.
        ratios: fractions of channels to drop, all monitored at once.
        ratio: the one of `ratios` that `stop` and `continue_training` use.
        window: history requires the newest mask to be at most `epsilon` from each of the `length` -
            1 masks before it (the authors' code); consecutive requires the last `length` distances
            between successive masks to be below `epsilon` (the paper's wording).
        length: number of masks or distances in the window.
        epsilon: largest distance of two masks, as the fraction of channels in which they differ.
        min_epoch: the first mask is drawn after this many epochs.
        stop: end the search when the ticket emerges; its weights are the artefact "search".
        continue_training: after `stop`, finish the schedule with the ticket's mask, or densely
            without a ticket.
    """

    penalty: NonNegative = 1e-4
    gamma_init: Positive | None = None
    across: Literal["mean", "max"] = "mean"
    ratios: tuple[OpenFraction, ...] = (0.3, 0.5, 0.7)
    ratio: OpenFraction = 0.5
    window: Window = "history"
    length: Annotated[int, Field(ge=2)] = 5
    epsilon: Positive = 0.1
    min_epoch: Annotated[int, Field(ge=1)] = 1
    stop: bool = True
    continue_training: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> EarlyBirdConfig:
        if self.ratio not in self.ratios:
            raise ValueError(f"ratio: {self.ratio} is not among ratios: {list(self.ratios)}")
        if self.continue_training and not self.stop:
            raise ValueError("continue_training: true needs stop: true")
        return self


def flat_mask(scores: Mapping[str, Tensor], ratio: float) -> Tensor | None:
    """One bool per channel, groups in order; False for the floor(ratio * N) smallest scores.

    None if the cut falls between equal nonzero scores, where any mask would be arbitrary.
    """
    flat = torch.cat(list(scores.values()))
    count = count_of(ratio, flat.numel())
    if 0 < count < flat.numel():
        last, first = kth_smallest([flat], count), kth_smallest([flat], count + 1)
        if bool((last == first) & (last > 0)):
            return None
    alive = torch.ones_like(flat, dtype=torch.bool)
    return drop_smallest({"": flat}, {"": alive}, count)[""]


def by_group(mask: Tensor, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split a flat mask by group; a group that would lose all channels keeps its largest."""
    parts = torch.split(mask, [score.numel() for score in scores.values()])
    keep = {name: part.clone() for name, part in zip(scores, parts, strict=True)}
    for name, part in keep.items():
        if not part.any():
            part[scores[name].argmax()] = True
    return keep


def pairwise_distances(masks: Tensor) -> Tensor:
    """Normalised Hamming distance between all rows of a bool matrix: shape (n, N) -> (n, n)."""
    return (masks[:, None] != masks[None]).double().mean(2)


def distances_back(masks: Tensor) -> list[float]:
    """Distances of the newest mask (last row) to itself, the one before, ..., the first.

    This is one row of the pairwise matrix.
    """
    row: list[float] = (masks[-1] != masks).double().mean(1).flip(0).tolist()
    return row


def recent_distances(masks: Tensor, window: Window, length: int) -> list[float]:
    """Distances in the window that ends at the newest mask (last row), the most recent first.

    history: from the newest mask to each of up to `length` - 1 masks before it. consecutive: within
    each of up to `length` pairs of successive masks.
    """
    rows = list(masks.flip(0))
    if window == "history":
        pairs = [(rows[0], other) for other in rows[1:length]]
    else:
        pairs = list(zip(rows[:length], rows[1 : length + 1], strict=False))
    return [float((a != b).double().mean()) for a, b in pairs]


def emerged(distances: Sequence[float], window: Window, length: int, epsilon: float) -> bool:
    """Whether the window is full and every distance is within `epsilon`."""
    if window == "history":
        return len(distances) == length - 1 and all(d <= epsilon for d in distances)
    return len(distances) == length and all(d < epsilon for d in distances)


def _state(ratio: str) -> str:
    return f"ticket-{ratio}"


@register_method("early_bird", EarlyBirdConfig)
class EarlyBird(MethodBase):
    """Phase "search", then possibly "continue".

    `masks`: per ratio, all masks drawn so far, one per row. `tickets`: per ratio, the number of
    trained epochs at which the ticket emerged and its mask per group.
    """

    granularity = Granularity.STRUCTURED

    def __init__(self, config: EarlyBirdConfig) -> None:
        self.config = config
        self.scales: list[nn.Parameter] = []
        self.epochs, self.trained, self.continuing = 0, 0, False
        self.masks: dict[str, Tensor] = {}
        self.tickets: dict[str, dict[str, Any]] = {}
        self._plan: PruningPlan | None = None

    def states(self) -> tuple[str, ...]:
        """The weights of every ratio's ticket as it emerged."""
        return tuple(_state(str(ratio)) for ratio in self.config.ratios)

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        if not self.config.continue_training:
            return (Phase("search", recipe.epochs, keep=True),)
        # leaves at least one epoch for "continue"; `end_epoch` ends that phase on time
        search = Phase("search", max(recipe.epochs - 1, 0), keep=True)
        return (search, Phase("continue", recipe.epochs))

    @torch.no_grad()
    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        self.groups = units.channels
        self.scales = trained_scales(model, self.groups)
        if self.config.gamma_init is not None:
            for scale in self.scales:
                scale.fill_(self.config.gamma_init)

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        self.epochs, self.continuing = recipe.epochs, phase.name == "continue"
        ticket = self.tickets.get(str(self.config.ratio))
        if self.continuing and ticket:
            self._plan = PruningPlan(self.granularity, ticket["mask"])
        return super().optimizer(model, phase, recipe)

    def schedule(self, optimizer: Optimizer, phase: Phase, recipe: Recipe) -> Schedule:
        """One schedule over both phases: "continue" resumes it where the search stopped."""
        return make_schedule(optimizer, recipe, start_epoch=self.trained)

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        if not self.continuing:
            add_l1_subgradient(self.scales, self.config.penalty)

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        self.trained = stats.epoch + 1
        if self.continuing:
            return self.trained >= self.epochs
        if self.trained >= self.config.min_epoch:
            scores = scale_saliency(model, self.groups, self.config.across)
            for ratio in self.config.ratios:
                self._watch(scores, ratio, stats)
        return self.config.stop and str(self.config.ratio) in self.tickets

    def _watch(self, scores: Mapping[str, Tensor], ratio: float, stats: EpochStats) -> None:
        """Draw this epoch's mask at `ratio`, log its distances, and store the ticket when it first
        emerges."""
        mask = flat_mask(scores, ratio)
        if mask is None:
            return
        key, window, length = str(ratio), self.config.window, self.config.length
        row = mask.cpu()[None]
        self.masks[key] = torch.cat([self.masks[key], row]) if key in self.masks else row
        distances = recent_distances(self.masks[key], window, length)
        stats.logged |= {
            f"mask_distance/{key}/{lag}": d for lag, d in enumerate(distances_back(self.masks[key]))
        }
        stats.logged |= {f"eb/dist_{lag}/{key}": d for lag, d in enumerate(distances, start=1)}
        if key not in self.tickets and emerged(distances, window, length, self.config.epsilon):
            self.tickets[key] = {"epoch": self.trained, "mask": by_group(mask, scores)}
            stats.logged[f"eb/ticket_epoch/{key}"] = float(self.trained)
            stats.keep.append(_state(key))

    def plan(self) -> PruningPlan | None:
        """The ticket of `ratio` in phase "continue", else None."""
        return self._plan

    def permanently_zero(self, model: nn.Module) -> PruningPlan | None:
        return self._plan if self.continuing else None

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        """|gamma|; 0 only if the whole channel is 0, including its producers and shifts."""
        return scale_saliency(model, units.channels, self.config.across)

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained, "masks": dict(self.masks), "tickets": dict(self.tickets)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trained = int(state["trained"])
        self.masks = dict(state["masks"])
        self.tickets = dict(state["tickets"])
