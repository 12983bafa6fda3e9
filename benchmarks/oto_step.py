"""Cost of one optimizer step of HSPG, DHSPG, HESSO and HESSO-CRIC in steps of foreach SGD.

    python -m benchmarks.oto_step [--steps 15] [--device cpu]

Side by side in one process and on one thread, variants interleaved, medians of thread time (of wall
time with synchronisation on a GPU). Read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from methods._oto.directions import DirectionOptions
from methods.dhspg import DHSPG, DHSPGOptions
from methods.hesso import HESSO, HESSOOptions
from methods.hesso_cric import HESSOCRIC, HESSOCRICOptions, Timetable
from methods.hspg import HSPG, HSPGOptions
from pipeline.units.groups import ChannelGroup, Slice
from pipeline.units.rows import Rows

Network = tuple[dict[str, nn.Parameter], list[ChannelGroup]]
MOMENTUM, DECAY = 0.9, 1e-4


class _Shapes:
    """Parameters and channel groups of a network, written down by hand."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.named: dict[str, nn.Parameter] = {}

    def add(self, name: str, *shape: int) -> str:
        self.named[name] = nn.Parameter(torch.randn(shape, device=self.device) * 0.1)
        return name

    def conv_norm(self, name: str, inputs: int, outputs: int, kernel: int) -> tuple[str, ...]:
        weight = self.add(f"{name}.weight", outputs, inputs, kernel, kernel)
        return (weight, self.add(f"{name}.gamma", outputs), self.add(f"{name}.beta", outputs))


def group(name: str, size: int, tensors: tuple[str, ...]) -> ChannelGroup:
    index = torch.arange(size)[:, None]
    return ChannelGroup(name, size, tuple(Slice(t, 0, "producer", index) for t in tensors))


def resnet18(device: torch.device) -> Network:
    """CIFAR layout, 11.2 M parameters: one group per block and one per residual stream."""
    shapes, groups = _Shapes(device), []
    stream, width = shapes.conv_norm("stem", 3, 64, 3), 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        if outputs != width:
            groups.append(group(f"stream{stage}", width, stream))
            stream = shapes.conv_norm(f"{stage}.shortcut", width, outputs, 1)
        for block in range(2):
            name, inputs = f"{stage}.{block}", outputs if block else width
            inner = shapes.conv_norm(f"{name}.a", inputs, outputs, 3)
            groups.append(group(f"{name}.a", outputs, inner))
            stream += shapes.conv_norm(f"{name}.b", outputs, outputs, 3)
        width = outputs
    groups.append(group("stream4", width, stream))
    shapes.add("fc.weight", 10, width), shapes.add("fc.bias", 10)
    return shapes.named, groups


def vgg16_bn(device: torch.device) -> Network:
    """OTO's layout, 15.3 M parameters: convolutions with bias, two hidden linear layers."""
    shapes, groups, inputs = _Shapes(device), [], 3
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for i, outputs in enumerate(widths):
        tensors = shapes.conv_norm(f"conv{i}", inputs, outputs, 3)
        tensors += (shapes.add(f"conv{i}.bias", outputs),)
        groups.append(group(f"conv{i}", outputs, tensors))
        inputs = outputs
    for name in ("fc1", "fc2"):
        tensors = (shapes.add(f"{name}.weight", 512, 512), shapes.add(f"{name}.bias", 512))
        groups.append(group(name, 512, tensors))
    shapes.add("fc3.weight", 10, 512), shapes.add("fc3.bias", 10)
    return shapes.named, groups


def optimizers(
    build: Callable[[torch.device], Network], device: torch.device
) -> dict[str, Optimizer]:
    """Every variant over its own copy of the network, in its most expensive state."""
    sgd = DirectionOptions("sgd", MOMENTUM)
    adam, adamw = DirectionOptions("adam"), DirectionOptions("adamw")
    lr = 1e-4
    makers: dict[str, Callable[[list[nn.Parameter], Rows], Optimizer]] = {
        "sgd foreach, momentum": lambda p, _: SGD(p, lr, MOMENTUM, foreach=True),
        "sgd fused, momentum": lambda p, _: SGD(p, lr, MOMENTUM, fused=True),
        "sgd foreach, momentum, decay": lambda p, _: SGD(
            p, lr, MOMENTUM, weight_decay=DECAY, foreach=True
        ),
        "adam foreach": lambda p, _: torch.optim.Adam(p, lr, foreach=True),
        "adam fused": lambda p, _: torch.optim.Adam(p, lr, fused=True),
        "hspg warm-up": lambda p, r: HSPG(p, r, lr, HSPGOptions(half_space=False)),
        "hspg half-space": lambda p, r: HSPG(p, r, lr, HSPGOptions()),
        "hspg half-space, cap": lambda p, r: HSPG(p, r, lr, HSPGOptions(upper=0.9)),
        "hspg half-space, momentum": lambda p, r: HSPG(p, r, lr, HSPGOptions(momentum=MOMENTUM)),
        "dhspg sgd": lambda p, r: DHSPG(p, r, lr, DHSPGOptions()),
        "dhspg sgd, momentum": lambda p, r: DHSPG(p, r, lr, DHSPGOptions(direction=sgd)),
        "dhspg sgd, momentum, decay": lambda p, r: DHSPG(
            p, r, lr, DHSPGOptions(direction=sgd, weight_decay=DECAY)
        ),
        "dhspg adam": lambda p, r: DHSPG(p, r, lr, DHSPGOptions(direction=adam)),
        "dhspg adam, decay": lambda p, r: DHSPG(
            p, r, lr, DHSPGOptions(direction=adam, weight_decay=DECAY)
        ),
        "dhspg adamw": lambda p, r: DHSPG(
            p, r, lr, DHSPGOptions(direction=adamw, weight_decay=DECAY)
        ),
        "hesso sgd, momentum": lambda p, r: HESSO(
            p, r, lr, HESSOOptions(direction=sgd, pruning_steps=10_000, periods=10)
        ),
        "hesso sgd, momentum, decay": lambda p, r: HESSO(
            p, r, lr, HESSOOptions(direction=sgd, weight_decay=DECAY, pruning_steps=10_000)
        ),
        "hesso adam, decay": lambda p, r: HESSO(
            p, r, lr, HESSOOptions(direction=adam, weight_decay=DECAY, pruning_steps=10_000)
        ),
        "hesso adamw": lambda p, r: HESSO(
            p, r, lr, HESSOOptions(direction=adamw, weight_decay=DECAY, pruning_steps=10_000)
        ),
        "hesso_cric sgd, momentum": lambda p, r: HESSOCRIC(
            p, r, lr, HESSOCRICOptions(direction=sgd, times=Timetable(0, 0, 1, 10_000))
        ),
    }
    made = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        named, groups = build(device)
        for p in named.values():
            p.grad = torch.randn_like(p) * 0.01
        made[name] = make(list(named.values()), Rows(named, groups))
    return made


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.thread_time()
        work()
        return time.thread_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(made: dict[str, Optimizer], steps: int, device: torch.device) -> dict[str, float]:
    """Median seconds per step, variants interleaved, after two steps each to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in made}
    for k in range(steps + 2):
        for name, optimizer in made.items():
            spent = seconds(optimizer.step, device)
            if k >= 2:
                taken[name].append(spent)
    return {name: statistics.median(values) for name, values in taken.items()}


def report(steps: int, device: torch.device) -> Iterator[str]:
    for build in (resnet18, vgg16_bn):
        made = optimizers(build, device)
        found = measure(made, steps, device)
        unit = found["sgd foreach, momentum"]
        yield f"{build.__name__} ({device}): one foreach SGD step = {unit * 1e3:.2f} ms"
        for name, value in found.items():
            yield f"  {name:30s} {value / unit:5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for line in report(asked.steps, torch.device(asked.device)):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
