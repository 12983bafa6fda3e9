"""One training, described: what the loop needs and whom it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from pipeline.training.checkpoint import State
from pipeline.training.method import Method
from pipeline.training.recipe import Recipe
from pipeline.training.tasks import Task
from pipeline.units.groups import Units
from pipeline.units.plan import PruningPlan


class TrainBatches(Protocol):
    """Training batches whose order and augmentation depend on (seed, epoch, step) only."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]: ...


class Observer(Protocol):
    """Who is told what happens. Never slows or stops the training."""

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None: ...
    def offset(self) -> int: ...
    def begin(self, offset: int = 0) -> None: ...


@dataclass(frozen=True)
class Job:
    """One training: what, on what, how.

    Attributes:
        fresh: a freshly initialised state for phases that start at "random".
        keep: a plan enforced throughout when the method has none (fine-tuning a masked network).
    """

    model: nn.Module
    units: Units
    method: Method
    task: Task
    recipe: Recipe
    train: TrainBatches
    validation: Iterable[Any] | None
    seed: int
    device: torch.device
    fresh: Callable[[], State]
    keep: PruningPlan | None = None
