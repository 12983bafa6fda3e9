"""Shared by the benchmarks of the training loop: jobs of `fit` on random CIFAR-10 images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data.augment import Transform
from pipeline.data.batches import WHOLE, Batch, Part, Placement
from pipeline.data.config import DataConfig, Statistics
from pipeline.data.info import DatasetInfo
from pipeline.data.loaders import TrainBatches
from pipeline.data.splits import TensorSplit
from pipeline.registry import method_spec
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job, Silent
from pipeline.training.recipe import Recipe
from pipeline.training.tasks.task import Classification
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

INFO = DatasetInfo("cifar10", (3, 32, 32), 10)
IMAGES = 50_000
WARM = 1  # untimed first steps of every measurement: they allocate what later ones reuse


@dataclass(frozen=True)
class Setting:
    """A network, a method and a batch size, trained as params.yaml could say it.

    Attributes:
        preset: data preset, for augmentation and statistics.
        options: settings of the method.
        recipe: further keys of `train`: precision, channels_last, compile, ...
        dead: fraction of the channels of every group that is zero from the start.
    """

    family: str
    network: str
    batch_size: int
    method: str = "dense"
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dead: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        return -(-IMAGES // self.batch_size)

    @property
    def transform(self) -> Transform:
        config = DataConfig(name="cifar10", preset=self.preset)
        assert isinstance(config.normalise, Statistics)
        return Transform(config.augment, (32, 32), config.normalise.mean, config.normalise.std)

    @property
    def spec(self) -> NetworkSpec:
        return NetworkSpec(self.family, self.network, {}, INFO)

    def build(self) -> tuple[nn.Module, Units]:
        """The network with the same initial weights every time, and its units."""
        torch.manual_seed(0)
        model = self.spec.build()
        units = self.spec.units(model)
        if self.dead:
            enforce(alive(units, self.dead), model, units)
        return model, units


def alive(units: Units, dead: float) -> PruningPlan:
    """The plan that removes the first channels of every group."""
    keep = {g.name: torch.arange(g.size) >= int(dead * g.size) for g in units.prunable}
    return PruningPlan(Granularity.STRUCTURED, keep)


def images() -> TensorSplit:
    """Random images, as many as in CIFAR-10's training split."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=g)
    return TensorSplit(pixels, torch.randint(0, 10, (IMAGES,), generator=g))


class FirstSteps:
    """The first steps of an epoch over all images, with their start and end (thread time).

    Attributes:
        planned: seconds to plan the epoch (order and random numbers).
        began, ended: the clock after `WARM` steps and after the last step.
        warming: wall seconds of the first `WARM` steps, including compilation.
    """

    def __init__(self, inner: TrainBatches, steps: int) -> None:
        self._inner, self._steps = inner, steps
        self.planned = self.began = self.ended = self.warming = 0.0

    def __len__(self) -> int:
        return self._steps + WARM

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Batch]:
        start = time.thread_time()
        source = self._inner.epoch(epoch, start_step, part)
        self.planned = time.thread_time() - start
        wall = time.perf_counter()
        try:
            for number in range(len(self)):
                if number == WARM:
                    self.began, self.warming = time.thread_time(), time.perf_counter() - wall
                yield next(source)
        finally:  # the loop asks for no batch beyond the last epoch's
            self.ended = time.thread_time()


def make_job(setting: Setting, split: TensorSplit, steps: int) -> tuple[Job, FirstSteps]:
    """One epoch of `WARM + steps` steps, without validation, built as `train_network` does."""
    model, units = setting.build()
    spec = method_spec(setting.method)
    recipe = Recipe(epochs=1, batch_size=setting.batch_size, **setting.recipe)
    form = torch.channels_last if recipe.channels_last else torch.contiguous_format
    placement = Placement(device=setting.device, channels_last=recipe.channels_last)
    batches = TrainBatches(
        split, setting.transform, batch_size=setting.batch_size, seed=0, placement=placement
    )
    first = FirstSteps(batches, steps)
    job = Job(
        model=model.to(setting.device, memory_format=form),
        units=units,
        method=spec.build(spec.config(**setting.options)),
        task=Classification(INFO.num_classes),
        recipe=recipe,
        train=first,
        validation=None,
        seed=0,
        device=torch.device(setting.device),
        fresh=lambda _: model.state_dict(),
    )
    return job, first


@dataclass(frozen=True)
class Cost:
    """Seconds of one step, of the work done once per epoch, and of the first steps (wall)."""

    step: float
    once: float
    warming: float = 0.0

    def epoch(self, steps: int) -> float:
        return self.once + steps * self.step


def run_fit(setting: Setting, split: TensorSplit, steps: int) -> Cost:
    """Our loop: `fit` itself, from the first measured batch to its return."""
    job, first = make_job(setting, split, steps)
    with tempfile.TemporaryDirectory() as folder:
        fit(job, CheckpointFolder(Path(folder), "benchmark"), Silent())
        done = time.thread_time()
    once = first.planned + done - first.ended
    return Cost((first.ended - first.began) / steps, once, first.warming)
