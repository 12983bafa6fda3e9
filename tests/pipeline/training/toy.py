"""A tiny problem for tests of the loop: a network, batches, and a way to run `fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job
from pipeline.training.method import Method, MethodBase
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.training.tasks.task import Classification
from pipeline.units.groups import Units

RECIPE = Recipe(
    epochs=4,
    batch_size=8,
    optimizer=OptimizerConfig(lr=0.1),
    schedule=ScheduleConfig(milestones=(2,)),
    rewind_epoch=1,
)
WEIGHTS = ("0.weight", "4.weight")


def network(seed: int = 0) -> nn.Sequential:
    """Linear-BN-ReLU-Dropout-Linear: everything a checkpoint can forget."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


class Batches:
    """20 examples, 3 batches; order and noise depend on (epoch, step) only."""

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start_step, 3):
            g = torch.Generator().manual_seed(1000 * epoch + step)
            x = torch.randn(8, 6, generator=g)
            yield x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


@dataclass
class Recorder:
    """An observer that remembers."""

    rows: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        self.rows.append((epoch, step, dict(values)))

    def offset(self) -> int:
        return len(self.rows)

    def begin(self, offset: int = 0) -> None:
        self.begun.append(offset)
        del self.rows[offset:]


def job(method: Method | None = None, recipe: Recipe = RECIPE, **changes: Any) -> Job:
    """A job on the toy problem with a fresh network."""
    made = Job(
        model=network(),
        units=Units(WEIGHTS, ()),
        method=method or MethodBase(),
        task=Classification(3),
        recipe=recipe,
        train=Batches(),
        validation=list(Batches().epoch(99)),
        seed=0,
        device=torch.device("cpu"),
        fresh=lambda _: clone_state(network(seed=5)),
    )
    return replace(made, **changes)


def train(folder: Path, made: Job, mark: str = "x") -> tuple[nn.Module, Recorder, list[Any]]:
    """Run `fit` to its end; returns model, observer and curve."""
    observer = Recorder()
    curve = fit(made, CheckpointFolder(folder, mark), observer)
    return made.model, observer, curve


def same(a: nn.Module, b: nn.Module) -> bool:
    """Bit-equal weights and buffers."""
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == j and torch.equal(v, w) for (k, v), (j, w) in pairs)
