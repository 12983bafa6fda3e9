"""A tiny problem for tests of the loop: a network, batches, and a way to run `fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job
from pipeline.training.method import Method, MethodBase
from pipeline.training.phases import Phase
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.training.tasks.task import Classification
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

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


class Killed(BaseException):
    """Stands for kill -9 at a chosen moment."""


class KillAt(Batches):
    """Batches that end the process before step `step` of the training."""

    def __init__(self, step: int) -> None:
        self.left = step

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for batch in super().epoch(epoch, start_step):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


class Rounds(MethodBase):
    """Two rounds; after the first, half of each weight is masked and the weights start over."""

    def __init__(self, start: str = "init") -> None:
        self.start, self.keep = start, None

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        start: Any = self.start
        first = Phase("round-0", 2, keep=True)
        return (first, Phase("round-1", 2, start_from=start, lr_epoch=1))

    def end_phase(self, model: nn.Module, phase: Phase) -> None:
        if phase.name == "round-0":
            state = model.state_dict()
            keep = {n: state[n] > state[n].median() for n in WEIGHTS}
            self.keep = PruningPlan(Granularity.UNSTRUCTURED, keep)

    def plan(self) -> PruningPlan | None:
        return self.keep

    def state_dict(self) -> dict[str, Any]:
        return {"keep": dict(self.keep.keep) if self.keep else None}

    def load_state_dict(self, state: Any) -> None:
        keep = state["keep"]
        self.keep = PruningPlan(Granularity.UNSTRUCTURED, keep) if keep else None
