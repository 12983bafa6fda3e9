"""A masked and a dense training step: `python -m benchmarks.masked_step [--batch 128]`.

ResNet20 for CIFAR-10, SGD with momentum, one thread, alternating steps of the two networks; medians
of thread time (CPU) or wall time (GPU). The masked step has the additional work of iterative
magnitude pruning: it multiplies gradients by the mask and enforces the plan after the step.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import click
import torch
from torch.nn.functional import cross_entropy

from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model, model_spec
from pipeline.selection.masks import GradientMask
from pipeline.selection.saliency import magnitude
from pipeline.selection.threshold import keep_all_but
from pipeline.units.enforce import Enforcer
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units

INFO = DatasetInfo("cifar10", (3, 32, 32), 10)
FAMILY, NAME = "resnet_cifar", "resnet20"


def stepper(batch: int, device: str, sparsity: float) -> Callable[[], None]:
    """One training step; `sparsity` 0 = dense, nothing masked."""
    torch.manual_seed(0)
    model = build_model(FAMILY, NAME, INFO).to(device).train()
    units = trace_units(
        model, torch.zeros(1, *INFO.input_shape).to(device), model_spec(FAMILY, NAME).never_prune
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4, foreach=True)
    scores = magnitude(model, units)
    keep = keep_all_but(scores, int(sparsity * sum(s.numel() for s in scores.values())))
    gradients = GradientMask(dict(model.named_parameters()), keep)
    enforcer = Enforcer(PruningPlan(Granularity.UNSTRUCTURED, keep), model, units)
    enforcer.apply()
    images = torch.randn(batch, *INFO.input_shape, device=device)
    labels = torch.arange(batch, device=device) % INFO.num_classes

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(images), labels).backward()
        if sparsity:
            gradients.apply()
        optimizer.step()
        if sparsity:
            enforcer.apply()

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.thread_time()
    step()
    return time.thread_time() - began


@click.command()
@click.option("--batch", default=128, show_default=True)
@click.option("--rounds", default=21, show_default=True)
@click.option("--sparsity", default=0.8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(batch: int, rounds: int, sparsity: float, device: str) -> None:
    """Print both medians and their ratio."""
    torch.set_num_threads(1)
    steps = {"dense": stepper(batch, device, 0.0), "masked": stepper(batch, device, sparsity)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            took = seconds(step, device)
            if turn >= 3:
                times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, took in medians.items():
        ratio = took / medians["dense"]
        sys.stdout.write(f"ResNet20, batch {batch}, {name:6} {took * 1e3:9.2f} ms {ratio:6.3f} x\n")


if __name__ == "__main__":
    main()
