"""Cost of one optimizer step of HSPG, DHSPG, HESSO and HESSO-CRIC relative to foreach SGD.

    python -m benchmarks.oto_step [--steps 15] [--device cpu]

One process, one thread, variants interleaved, medians of thread time (of wall time with
synchronisation on a GPU). Compare ratios, not milliseconds.
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

from methods.dhspg import DHSPG, DHSPGConfig
from methods.hesso import HESSO, HESSOConfig
from methods.hesso_cric import HESSOCRIC, HESSOCRICConfig, Timetable
from methods.hspg import HSPG, HSPGConfig
from pipeline.training.recipe import OptimizerConfig
from pipeline.units.groups import ChannelGroup, Slice
from pipeline.units.rows import Rows

Network = tuple[dict[str, nn.Parameter], list[ChannelGroup]]
MOMENTUM, DECAY = 0.9, 1e-4


class _Shapes:
    """Parameters and channel groups of a network, listed by hand."""

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


def asked(name: str, momentum: float = 0.0, decay: float = 0.0) -> OptimizerConfig:
    return OptimizerConfig(name=name, lr=1e-4, momentum=momentum, weight_decay=decay)


def hesso(params: list[nn.Parameter], rows: Rows, direction: OptimizerConfig) -> HESSO:
    made = HESSO(params, rows, direction, HESSOConfig())
    made.schedule(0, 10_000)
    return made


def hesso_cric(params: list[nn.Parameter], rows: Rows, direction: OptimizerConfig) -> HESSOCRIC:
    made = HESSOCRIC(params, rows, direction, HESSOCRICConfig())
    made.schedule(Timetable(0, 0, 1, 10_000))
    return made


def optimizers(
    build: Callable[[torch.device], Network], device: torch.device
) -> dict[str, Optimizer]:
    """Every variant on its own copy of the network, in its most expensive state."""
    lr = 1e-4
    dhspg = DHSPGConfig()
    makers: dict[str, Callable[[list[nn.Parameter], Rows], Optimizer]] = {
        "sgd foreach, momentum": lambda p, _: SGD(p, lr, MOMENTUM, foreach=True),
        "sgd fused, momentum": lambda p, _: SGD(p, lr, MOMENTUM, fused=True),
        "sgd foreach, momentum, decay": lambda p, _: SGD(
            p, lr, MOMENTUM, weight_decay=DECAY, foreach=True
        ),
        "adam foreach": lambda p, _: torch.optim.Adam(p, lr, foreach=True),
        "adam fused": lambda p, _: torch.optim.Adam(p, lr, fused=True),
        "hspg warm-up": lambda p, r: HSPG(p, r, lr, HSPGConfig(), half_space=False),
        "hspg half-space": lambda p, r: HSPG(p, r, lr, HSPGConfig()),
        "hspg half-space, cap": lambda p, r: HSPG(p, r, lr, HSPGConfig(upper_group_sparsity=0.9)),
        "hspg half-space, momentum": lambda p, r: HSPG(p, r, lr, HSPGConfig(momentum=MOMENTUM)),
        "dhspg sgd": lambda p, r: DHSPG(p, r, asked("sgd"), dhspg),
        "dhspg sgd, momentum": lambda p, r: DHSPG(p, r, asked("sgd", MOMENTUM), dhspg),
        "dhspg sgd, momentum, decay": lambda p, r: DHSPG(
            p, r, asked("sgd", MOMENTUM, DECAY), dhspg
        ),
        "dhspg adam": lambda p, r: DHSPG(p, r, asked("adam"), dhspg),
        "dhspg adam, decay": lambda p, r: DHSPG(p, r, asked("adam", 0.0, DECAY), dhspg),
        "dhspg adamw": lambda p, r: DHSPG(p, r, asked("adamw", 0.0, DECAY), dhspg),
        "hesso sgd, momentum": lambda p, r: hesso(p, r, asked("sgd", MOMENTUM)),
        "hesso sgd, momentum, decay": lambda p, r: hesso(p, r, asked("sgd", MOMENTUM, DECAY)),
        "hesso adam, decay": lambda p, r: hesso(p, r, asked("adam", 0.0, DECAY)),
        "hesso adamw": lambda p, r: hesso(p, r, asked("adamw", 0.0, DECAY)),
        "hesso_cric sgd, momentum": lambda p, r: hesso_cric(p, r, asked("sgd", MOMENTUM)),
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
    """Median seconds per step, variants interleaved, after two warm-up steps each."""
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
