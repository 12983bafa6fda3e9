"""One training epoch: our loop and re-implementations of OTO v1's and SFW-pruning's loops.

    python -m benchmarks.epoch [--steps 2] [--rounds 3] [--only vgg16_bn] [--compile]

Same network, initial weights, images, batch size and epoch; one thread of one process, thread time,
variants interleaved, medians. Only a few steps of every epoch are run: the time of an epoch is its
number of steps times the time of a step, plus the work done once (plan, checkpoint, log). Neither
side evaluates.

"half dead": this fraction of the channels is zero, and `train.compact` removes them from the
computation; the other program computes them.

Compare the ratios to the first line. Only "fp32" lines do the same arithmetic. "network alone" is
forward, loss and backward on prepared batches; "multiply-adds alone" is the time of their
multiply-adds at the rate of this core's fastest matrix product, a lower bound for any fp32 loop
that computes all of them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import IO, Any

import click
import torch
import torch.nn.functional as F

from benchmarks.loops import WARM, Cost, Setting, images, run_fit
from benchmarks.plain_loops import FrankWolfeLoop, HalfSpaceLoop, PlainLoop
from pipeline.data.splits import TensorSplit
from pipeline.study.records.counts import count_network

HALF_SPACE = Setting(
    "vgg",
    "vgg16_bn",
    64,
    "hspg",
    "oto",
    {"penalty": 5e-4, "epsilon_linear": 0.9, "warmup_epochs": 0},
    {"optimizer": {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}},
)
FRANK_WOLFE = Setting("resnet_cifar", "resnet18", 128, "sfw", "sfw-pruning")
FORMS: dict[str, dict[str, Any]] = {
    "ours, fp32": {},
    "ours, fp32 channels_last": {"channels_last": True},
    "ours, bf16 channels_last": {"channels_last": True, "precision": "bf16"},
}
DEAD = {"a quarter dead": 0.25, "half dead": 0.5}  # of the channels of every group
COMPILED: dict[str, dict[str, Any]] = {
    "ours, fp32, compiled": {"compile": True},
    "ours, fp32 channels_last, compiled": {"channels_last": True, "compile": True},
    "ours, bf16 channels_last, compiled": {
        "channels_last": True,
        "precision": "bf16",
        "compile": True,
    },
}

Variant = Callable[[int], Cost]


def network_alone(setting: Setting, channels_last: bool) -> Variant:
    """Forward, loss, backward."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    model = setting.build()[0].to(memory_format=form)
    batch = torch.randn(setting.batch_size, 3, 32, 32).to(memory_format=form)
    labels = torch.randint(0, 10, (setting.batch_size,))

    def run(steps: int) -> Cost:
        start = 0.0
        for step in range(WARM + steps):
            if step == WARM:
                start = time.thread_time()
            model.zero_grad()
            F.cross_entropy(model(batch), labels).backward()
        return Cost((time.thread_time() - start) / steps, 0.0)

    return run


def multiply_adds(setting: Setting, size: int = 1536) -> Variant:
    """Three times the network's MACs (forward, two products backward) as matrix products."""
    macs = 3 * count_network(setting.spec, setting.build()[0]).macs * setting.batch_size
    left, right = torch.randn(size, size), torch.randn(size, size)

    def run(steps: int) -> Cost:
        del steps
        start = time.thread_time()
        left @ right
        return Cost((time.thread_time() - start) * macs / size**3, 0.0)

    return run


def optimizer_in_sgd_steps(loop: HalfSpaceLoop | FrankWolfeLoop, rounds: int) -> float:
    """Time of the re-implemented optimizer's step relative to torch's fused SGD with momentum."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in loop.model.parameters()]
    for p in copies:
        p.grad = torch.randn_like(p)
    sgd = torch.optim.SGD(copies, 1e-4, 0.9, fused=True)
    taken: dict[Callable[[], object], list[float]] = {loop.optimizer_step: [], sgd.step: []}
    for k in range(rounds + 2):
        for work, values in taken.items():
            start = time.thread_time()
            work()
            if k >= 2:
                values.append(time.thread_time() - start)
    theirs, unit = (statistics.median(v) for v in taken.values())
    return theirs / unit


def variants(
    loop: PlainLoop, name: str, setting: Setting, split: TensorSplit, compiled: bool
) -> dict[str, Variant]:
    """The variants to compare; the re-implemented loop is the unit."""
    found: dict[str, Variant] = {name: loop.run}
    for form, recipe in (FORMS | (COMPILED if compiled else {})).items():
        asked = replace(setting, recipe={**setting.recipe, **recipe})
        found[form] = partial(run_fit, asked, split)
    if setting.method == "hspg":  # its zero channels are permanently zero
        recipe = {**setting.recipe, "channels_last": True, "compact": True}
        for what, dead in DEAD.items():
            asked = replace(setting, recipe=recipe, dead=dead)
            found[f"ours, fp32 channels_last, {what}"] = partial(run_fit, asked, split)
    found["network alone, fp32"] = network_alone(setting, False)
    found["network alone, fp32 channels_last"] = network_alone(setting, True)
    found["multiply-adds alone, fp32"] = multiply_adds(setting)
    return found


def measure(made: dict[str, Variant], steps: int, rounds: int) -> dict[str, Cost]:
    """Median costs, variants interleaved."""
    taken: dict[str, list[Cost]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, run in made.items():
            taken[name].append(run(steps))
    return {
        name: Cost(
            statistics.median(c.step for c in v),
            statistics.median(c.once for c in v),
            max(c.warming for c in v),
        )
        for name, v in taken.items()
    }


def show(setting: Setting, name: str, found: dict[str, Cost]) -> None:
    unit = found[name].epoch(setting.steps_per_epoch)
    for variant, cost in found.items():
        epoch = cost.epoch(setting.steps_per_epoch)
        numbers = f"{epoch / unit:6.3f} {cost.step * 1e3:10.0f} ms/step {cost.once:7.2f} s once"
        if "compiled" in variant:
            numbers += f" {cost.warming:7.1f} s to compile (wall)"
        sys.stdout.write(f"  {variant:36}{numbers}\n")


def loops(split: TensorSplit, log: IO[str]) -> dict[str, tuple[Setting, str, PlainLoop]]:
    return {
        "vgg16_bn": (HALF_SPACE, "OTO v1's loop", HalfSpaceLoop(HALF_SPACE, split)),
        "resnet18": (FRANK_WOLFE, "SFW-pruning's loop", FrankWolfeLoop(FRANK_WOLFE, split, log)),
    }


@click.command(help=__doc__)
@click.option("--steps", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", type=click.Choice(["vgg16_bn", "resnet18"]))
@click.option("--compile", "compiled", is_flag=True, help="also under torch.compile")
def main(steps: int, rounds: int, only: str | None, compiled: bool) -> None:
    torch.set_num_threads(1)
    split = images()
    with tempfile.TemporaryFile("w") as log:
        for network, (setting, name, loop) in loops(split, log).items():
            if only in (None, network):
                sys.stdout.write(f"{network}, batch {setting.batch_size}, {setting.method}\n")
                made = variants(loop, name, setting, split, compiled)
                show(setting, name, measure(made, steps, rounds))
                ratio = optimizer_in_sgd_steps(loop, rounds)  # type: ignore[arg-type]
                sys.stdout.write(f"  its optimizer step: {ratio:.1f} fused SGD steps\n")


if __name__ == "__main__":
    main()
