"""One SFW step and one SGD step: `python -m benchmarks.sfw_step [--rounds 15] [--device cpu]`.

Parameters of ResNet18 and VGG16-BN for CIFAR-10, slowly varying gradients as with momentum, one
thread, thread time (CPU) or events (GPU), all optimizers interleaved in one process. Compare
ratios, not milliseconds. "per-tensor loop" is the straightforward implementation: `torch.topk`
per tensor and norms as Python numbers.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor, nn

from methods.sfw import SFW, SFWConfig, feasible_sets
from methods.sfw.constraints import ConvexSet, make_feasible
from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model

INFO = DatasetInfo("cifar10", (3, 32, 32), 10)
NETWORKS = {"ResNet18": ("resnet_cifar", "resnet18"), "VGG16-BN": ("vgg", "vgg16_bn")}

Run = Callable[[list[Tensor]], None]


def per_tensor_loop(
    params: list[nn.Parameter], sets: list[ConvexSet], momenta: list[Tensor | None], lr: float
) -> None:
    """The same step per tensor, with sorted top-k and values read back from the device."""
    for i, (w, feasible) in enumerate(zip(params, sets, strict=True)):
        assert w.grad is not None
        last = momenta[i]
        m = w.grad.clone() if last is None else last.mul_(0.9).add_(w.grad, alpha=0.1)
        momenta[i] = m
        flat = m.flatten()
        top = torch.topk(flat.abs(), feasible.k).indices  # type: ignore[attr-defined]
        v = torch.zeros_like(flat)
        v[top] = -feasible.radius * flat[top].sign()  # type: ignore[attr-defined]
        v = v.view_as(w)
        distance = (w - v).norm().item()
        gamma = max(0.0, min(1.0, lr * m.norm().item() / distance)) if distance else 0.0
        w.mul_(1.0 - gamma).add_(v, alpha=gamma)


def clone(model: nn.Module) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in model.parameters()]


def steppers(model: nn.Module) -> dict[str, Run]:
    """Every optimizer on its own copy of the parameters, as a function of a step's gradients."""
    sets = list(feasible_sets(model, SFWConfig(), ()).values())

    def with_gradients(params: list[nn.Parameter], step: Callable[[], object]) -> Run:
        def run(gradients: list[Tensor]) -> None:
            for p, g in zip(params, gradients, strict=True):
                p.grad = g
            step()

        return run

    ours, loop = clone(model), clone(model)
    groups = [{"params": [p], "constraint": s.plain()} for p, s in zip(ours, sets, strict=True)]
    momenta: list[Tensor | None] = [None] * len(loop)

    @torch.no_grad()
    def loop_step() -> None:
        per_tensor_loop(loop, sets, momenta, 1.0)

    foreach, fused = clone(model), clone(model)
    return {
        "SGD foreach": with_gradients(
            foreach, torch.optim.SGD(foreach, 0.1, 0.9, foreach=True).step
        ),
        "SGD fused": with_gradients(fused, torch.optim.SGD(fused, 0.1, 0.9, fused=True).step),
        "SFW": with_gradients(ours, SFW(groups).step),
        "per-tensor loop": with_gradients(loop, loop_step),
    }


def seconds(run: Run, gradients: list[Tensor]) -> float:
    if gradients[0].device.type == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        run(gradients)
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.thread_time()
    run(gradients)
    return time.thread_time() - began


def measure(model: nn.Module, rounds: int) -> dict[str, float]:
    """Median seconds of a step per optimizer, after 3 warm-up rounds."""
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(0)
    contenders = steppers(model)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 3):
        gradients = [
            torch.randn(p.shape, generator=generator, device=p.device) / math.sqrt(p.numel())
            for p in model.parameters()
        ]
        for name, run in contenders.items():
            took = seconds(run, gradients)
            if turn >= 3:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(rounds: int, device: str) -> None:
    """Print the ratios to `SGD(foreach=True, momentum=0.9)`."""
    torch.set_num_threads(1)
    for label, (family, name) in NETWORKS.items():
        torch.manual_seed(0)
        model = build_model(family, name, INFO).to(device)
        make_feasible(model, feasible_sets(model, SFWConfig(), ()))
        found = measure(model, rounds)
        unit = found["SGD foreach"]
        for contender, took in found.items():
            line = f"{label:10} {contender:16} {took * 1e3:9.2f} ms {took / unit:6.2f} x"
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
