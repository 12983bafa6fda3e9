"""Masks at initialisation beside the published ones of Tanaka et al. (NeurIPS 2020).

    python -m benchmarks.initial_masks synflow --seed 0 [--log10 2 --log10 2.5]
    python -m benchmarks.initial_masks snip --seed 0 --log10 1 --cifar10 data/raw --images 1000
    python -m benchmarks.mask_tables

Draws the masks by the method `init_pruning` and adds a line per compression to ours.csv in
studies/synflow-masks; lines that are there are not drawn again. Nothing is trained; magnitude,
random and synflow need no data.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from methods.init_pruning.method import Score, scorer
from pipeline.data.info import DatasetInfo
from pipeline.files import write_text
from pipeline.registry import build_model, method_spec, model_spec
from pipeline.selection.criteria import classification_loss, keep_density
from pipeline.selection.masks import choose_weights
from pipeline.units.groups import Units
from pipeline.units.trace import trace_units

HOME = Path(__file__).resolve().parents[1] / "studies/synflow-masks"
FAMILY, NAME = "vgg", "vgg16_bn_lth"
INFO = DatasetInfo("cifar100", (3, 32, 32), 100)
ROUNDS = 100
CRITERIA = ("random", "magnitude", "synflow", "snip", "grasp")
NEED_DATA = ("snip", "grasp")
LOG10 = tuple(i / 4 for i in range(1, 25))
LAYERS = (*(f"conv{i}" for i in range(1, 14)), "fc")
BATCH = 256
Counts = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Case:
    """One mask. `images`: what the scores are computed from; `batch_norm`: "eval" scores with the
    running statistics of a fresh network, as the authors do, "train" with those of the batch;
    `removed`: removed weights "stay" so in later rounds or, as in the authors' program, "compete"
    again."""

    criterion: str
    log10_compression: float
    batch_norm: str
    rounds: int
    images: int
    run: int
    removed: str = "stay"


class Images:
    """Batches for a score: CIFAR-10's images, and as many of each of 100 random labels."""

    def __init__(self, root: Path, count: int, seed: int) -> None:
        from torchvision.datasets import CIFAR10

        found = torch.from_numpy(CIFAR10(str(root), train=True, download=False).data)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(found), generator=generator)[:count]
        images = found[chosen].permute(0, 3, 1, 2).float() / 255.0
        spread, centre = torch.std_mean(images, (0, 2, 3), keepdim=True)
        labels = (torch.arange(count) % 100)[torch.randperm(count, generator=generator)]
        self._batches = list(zip(((images - centre) / spread).split(BATCH), labels.split(BATCH),
                                 strict=True))  # fmt: skip

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean cross-entropy."""
        return classification_loss()(model, batch)


class Ones(Images):
    """One input, of which only the shape is read."""

    def __init__(self) -> None:
        self._batches = [(torch.ones(1, *INFO.input_shape), torch.zeros(1, dtype=torch.int64))]


def network(seed: int) -> tuple[nn.Module, Units]:
    """VGG-16 with fresh weights, and what can be pruned in it."""
    torch.manual_seed(seed)
    model = build_model(FAMILY, NAME, INFO, {})
    example = torch.zeros(1, *INFO.input_shape)
    return model, trace_units(model, example, model_spec(FAMILY, NAME).never_prune)


def draw(case: Case, batches: Images) -> Counts:
    """The weights kept per layer by the mask of the method `init_pruning`."""
    model, units = network(case.run)
    if case.batch_norm == "eval":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda _=True, module=module: module  # type: ignore[method-assign]
    spec = method_spec("init_pruning")
    method = spec.build(spec.config(
        criterion=case.criterion, sparsity=1.0 - 10.0**-case.log10_compression, rounds=case.rounds,
        batches=len(batches), seed=case.run,
    ))  # fmt: skip
    if case.removed == "compete":
        names = choose_weights(model, units, "all")
        return compete(case, model, names, batches, scorer(method.config, names, batches))
    method.prepare(model, units, batches)
    plan = method.plan()
    assert plan is not None
    return tuple(int(mask.sum()) for mask in plan.keep.values())


def compete(
    case: Case, model: nn.Module, names: Sequence[str], batches: Images, score: Score
) -> Counts:
    """Masks that each round chooses from all weights, so that a removed one may come back: with
    SNIP by |g w|, the gradient at the masked network times the initial weight, with GraSP because
    its score, 0, is above every negative one."""
    initial = {name: model.get_parameter(name).detach().clone() for name in names}
    keep = {name: torch.ones_like(w, dtype=torch.bool) for name, w in initial.items()}
    every = keep
    for step in range(1, case.rounds + 1):
        weights = [model.get_parameter(name) for name in names]
        with torch.no_grad():
            for name, weight in zip(names, weights, strict=True):
                weight.copy_(initial[name] * keep[name])
        if case.criterion == "snip":
            sums = [torch.zeros_like(weight) for weight in weights]
            for batch in batches:
                grads = torch.autograd.grad(batches.loss(model, batch), weights)
                torch._foreach_add_(sums, grads)
            scores = {n: (g * initial[n]).abs() for n, g in zip(names, sums, strict=True)}
        else:
            scores = score(model)
        density = 10.0 ** (-case.log10_compression * step / case.rounds)
        keep = keep_density(scores, every, density, "global")
    return tuple(int(mask.sum()) for mask in keep.values())


def read_ours() -> dict[Case, Counts]:
    """Every mask drawn so far."""
    path = HOME / "ours.csv"
    lines = csv.DictReader(path.read_text().splitlines()) if path.is_file() else ()
    return {
        Case(
            row["criterion"], float(row["log10_compression"]), row["batch_norm"],
            int(row["rounds"]), int(row["images"]), int(row["run"]), row["removed"],
        ): tuple(int(row[layer]) for layer in LAYERS)
        for row in lines
    }  # fmt: skip


def write_ours(found: Mapping[Case, Counts]) -> None:
    head = ("criterion", "log10_compression", "batch_norm", "rounds", "images", "run", "removed")
    rows = [
        (
            c.criterion,
            f"{c.log10_compression:g}",
            c.batch_norm,
            c.rounds,
            c.images,
            c.run,
            c.removed,
            *found[c],
        )
        for c in sorted(found)
    ]
    write_text(HOME / "ours.csv", csv_text((*head, *LAYERS), rows))


def csv_text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


@click.command(help=__doc__)
@click.argument("criterion", type=click.Choice(CRITERIA))
@click.option("--seed", type=int, required=True)
@click.option("--log10", "chosen", type=float, multiple=True, help="Default: all 24.")
@click.option("--rounds", type=int, help="Default: 100; 1 where the scores never change.")
@click.option("--batch-norm", type=click.Choice(["eval", "train"]), default="eval")
@click.option("--removed", type=click.Choice(["stay", "compete"]), default="stay")
@click.option("--cifar10", type=click.Path(path_type=Path, exists=True))
@click.option("--images", type=int, default=1000)
def main(
    criterion: str, seed: int, chosen: tuple[float, ...], rounds: int | None, **how: Any
) -> None:
    """Draw masks of one criterion."""
    needs = criterion in NEED_DATA
    if needs and how["cifar10"] is None:
        raise click.UsageError(f"{criterion} needs --cifar10")
    data = Images(how["cifar10"], how["images"], seed) if needs else Ones()
    seen = how["images"] if needs else 0
    if how["removed"] == "compete" and not needs:
        raise click.UsageError("--removed compete is for snip and grasp: it changes nothing else")
    default = 1 if criterion in ("random", "magnitude") else ROUNDS  # the same mask, sooner
    for log10 in chosen or LOG10:
        case = Case(
            criterion, log10, how["batch_norm"], rounds or default, seen, seed, how["removed"]
        )
        if case not in read_ours():
            counts = draw(case, data)
            write_ours(read_ours() | {case: counts})
            click.echo(f"{case}: {counts}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
