"""The description of one training: the loop's inputs and its observer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.data.batches import WHOLE, Part
from pipeline.training.loop.checkpoint import State
from pipeline.training.loop.distributed import ALONE, Team
from pipeline.training.method import Method
from pipeline.training.recipe import Recipe
from pipeline.training.tasks.task import Task
from pipeline.units.groups import Units
from pipeline.units.plan import PruningPlan


class TrainBatches(Protocol):
    """Training batches whose order and augmentation depend only on (seed, epoch, step). `part`
    selects this process's share of each batch."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Any]: ...


class FirstEpoch:
    """Whole batches of epoch 0, repeatable, and the task's loss on one."""

    def __init__(self, train: TrainBatches, task: Task) -> None:
        self._train, self._task = train, task

    def __iter__(self) -> Iterator[Any]:
        return self._train.epoch(0)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self._task.loss(model, batch)[0]


SECONDS = "system/epoch_seconds"  # metric of epochs trained by this process, not of resumed ones


class Observer(Protocol):
    """Receives the events of a training. Never slows or stops it.

    `begin`: start, or resume after the events before `offset`. Returns True if those are lost; all
    events must then be sent again.
    """

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None: ...
    def offset(self) -> int: ...
    def begin(self, offset: int = 0) -> bool: ...


class Silent:
    """The observer of every process except the first: ignores all events."""

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        pass

    def offset(self) -> int:
        return 0

    def begin(self, offset: int = 0) -> bool:
        del offset
        return False


@dataclass(frozen=True)
class Job:
    """One training: network, data, method, recipe.

    Attributes:
        fresh: freshly initialised weights for a phase (by number) that starts at "random". They
            differ by phase; otherwise a phase would restart from the weights its mask comes from.
        keep: a plan enforced throughout when the method has none (fine-tuning a masked network).
        team: the processes that share the training; each has its own job.
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
    fresh: Callable[[int], State]
    keep: PruningPlan | None = None
    team: Team = ALONE
