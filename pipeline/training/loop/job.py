"""One training, described: what the loop needs and whom it tells."""

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
    """Training batches whose order and augmentation depend on (seed, epoch, step) only; `part`
    says which share of each, for one of several processes."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Any]: ...


class FirstEpoch:
    """The batches of epoch 0, whole, as often as somebody asks, and the task's loss of one."""

    def __init__(self, train: TrainBatches, task: Task) -> None:
        self._train, self._task = train, task

    def __iter__(self) -> Iterator[Any]:
        return self._train.epoch(0)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self._task.loss(model, batch)[0]


SECONDS = "system/epoch_seconds"  # among the metrics of an epoch that was trained just now


class Observer(Protocol):
    """Who is told what happens. Never slows or stops the training.

    `begin`: start, or resume behind what was told before `offset`; True: that is lost, so it begins
    anew and must be told again.
    """

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None: ...
    def offset(self) -> int: ...
    def begin(self, offset: int = 0) -> bool: ...


class Silent:
    """The observer of a process that is not the first: says nothing."""

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        pass

    def offset(self) -> int:
        return 0

    def begin(self, offset: int = 0) -> bool:
        del offset
        return False


@dataclass(frozen=True)
class Job:
    """One training: what, on what, how.

    Attributes:
        fresh: freshly initialised weights for a phase (its number) that starts at "random"; other
            ones for every phase, or the second would be rewound to where its mask was found.
        keep: a plan enforced throughout when the method has none (fine-tuning a masked network).
        team: the processes that share the work; each has a job of its own.
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
