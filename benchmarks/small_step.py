"""Training LeNet-300-100 with our loop and a plain one; the loop itself dominates the cost.

    python -m benchmarks.small_step [--steps 400] [--rounds 7]

784-300-100-10 on random images of MNIST's shape, batch 60, Adam (lr 0.0012), one thread of one
process, thread time, variants interleaved, medians. "dense" trains all weights; "masked" trains 20%
of them, like a round of iterative magnitude pruning. The seconds of a step include everything that
the loop does in an epoch except its checkpoint: order of the data, batches, hooks, masks, sums for
the curve.

The plain loop is a minimal one: normalised float images in memory, one permutation per epoch,
torch's fused Adam, weights multiplied by their masks after each step. It records no metrics and
cannot be resumed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.augment import Transform
from pipeline.data.batches import WHOLE, Batch, Part
from pipeline.data.info import DatasetInfo
from pipeline.data.loaders import TrainBatches
from pipeline.data.splits import TensorSplit
from pipeline.registry import method_spec
from pipeline.selection.saliency import magnitude
from pipeline.selection.threshold import keep_all_but
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job, Silent
from pipeline.training.method import Method
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.training.tasks.task import Classification
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

INFO = DatasetInfo("mnist", (1, 28, 28), 10)
SPEC = NetworkSpec("lenet", "lenet_300_100", {}, INFO)
MEAN, STD, BATCH, LR, SPARSITY = 0.1307, 0.3081, 60, 1.2e-3, 0.8
WARM = 20  # untimed first steps

Variant = Callable[[int], float]
"""Maps a number of steps to the seconds of one step, measured over them."""


def images(count: int = 12_000) -> TensorSplit:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=g)
    return TensorSplit(pixels, torch.randint(0, 10, (count,), generator=g))


def network(sparsity: float) -> tuple[nn.Module, Units, dict[str, Tensor]]:
    """The network, its units, and masks of its largest weights."""
    torch.manual_seed(0)
    model = SPEC.build()
    units = SPEC.units(model)
    scores = magnitude(model, units)
    keep = keep_all_but(scores, int(sparsity * sum(s.numel() for s in scores.values())))
    return model, units, keep


def plain(split: TensorSplit, sparsity: float) -> Variant:
    """The minimal loop, from new weights each time: once the images are learnt by heart, numbers
    too small for a CPU's fast way make every step slower."""
    pixels = (split.images.float() / 255 - MEAN) / STD

    def run(steps: int) -> float:
        model, _, keep = network(sparsity)
        parameters = dict(model.named_parameters())
        masks = [(parameters[n], m.float()) for n, m in keep.items()] if sparsity else []
        optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)
        begin, taken = 0.0, 0
        while True:
            for chosen in torch.randperm(len(pixels)).split(BATCH):
                if taken == WARM:
                    begin = time.thread_time()
                if taken == WARM + steps:
                    return (time.thread_time() - begin) / steps
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(pixels[chosen]), split.labels[chosen]).backward()
                optimizer.step()
                with torch.no_grad():
                    for weight, mask in masks:
                        weight.mul_(mask)
                taken += 1

    return run


class Timed:
    """The training batches of one epoch; times all steps except the first ones."""

    def __init__(self, inner: TrainBatches, steps: int) -> None:
        self._inner, self._steps = inner, steps
        self.seconds = 0.0

    def __len__(self) -> int:
        return WARM + self._steps

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Batch]:
        del epoch, start_step
        taken, begin = 0, 0.0
        try:
            for number in range(len(self) // len(self._inner) + 1):
                for batch in self._inner.epoch(number, 0, part):
                    if taken == WARM:
                        begin = time.thread_time()
                    if taken == len(self):
                        return
                    yield batch
                    taken += 1
        finally:  # the last epoch of a training takes no batch more than it needs
            self.seconds = time.thread_time() - begin


def our_job(split: TensorSplit, sparsity: float, steps: int, method: str = "dense") -> Job:
    model, units, keep = network(sparsity)
    recipe = Recipe(
        epochs=1,
        batch_size=BATCH,
        optimizer=OptimizerConfig(name="adam", lr=LR, weight_decay=0.0, fused=True),
        schedule=ScheduleConfig(name="constant"),
    )
    transform = Transform((), (28, 28), (MEAN,), (STD,))
    plan = PruningPlan(Granularity.UNSTRUCTURED, keep) if sparsity else None
    made: Method = method_spec(method).build(method_spec(method).config())
    return Job(
        model=model,
        units=units,
        method=made,
        task=Classification(INFO.num_classes),
        recipe=recipe,
        train=Timed(TrainBatches(split, transform, batch_size=BATCH, seed=0), steps),
        validation=None,
        seed=0,
        device=torch.device("cpu"),
        fresh=lambda _: model.state_dict(),
        keep=plan,
    )


def ours(split: TensorSplit, sparsity: float) -> Variant:
    """`fit` itself."""

    def run(steps: int) -> float:
        job = our_job(split, sparsity, steps)
        with tempfile.TemporaryDirectory() as folder:
            fit(job, CheckpointFolder(Path(folder), "benchmark"), Silent())
        assert isinstance(job.train, Timed)
        assert job.train.seconds > 0
        return job.train.seconds / steps

    return run


@click.command(help=__doc__)
@click.option("--steps", default=400, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(steps: int, rounds: int) -> None:
    torch.set_num_threads(1)
    split = images()
    for name, sparsity in (("dense", 0.0), ("masked", SPARSITY)):
        variants = {"plain": plain(split, sparsity), "ours": ours(split, sparsity)}
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant, run in variants.items():
                times[variant].append(run(steps))
        theirs, own = (1e3 * statistics.median(times[variant]) for variant in variants)
        ratio = statistics.median(o / p for o, p in zip(times["ours"], times["plain"], strict=True))
        told = f"{name:7} plain {theirs:6.3f} ms, ours {own:6.3f} ms a step"
        sys.stdout.write(f"{told}, median ratio of neighbours {ratio:5.2f}\n")


if __name__ == "__main__":
    main()
