"""Finding the channel groups of a network and pruning half of each: ours and Torch-Pruning.

    python -m benchmarks.surgery [--rounds 5] [--networks resnet50 vgg16_bn mobilenet_v2 bert_base]

Needs `pip install -e .[benchmarks]`. One process, one thread, engines interleaved, medians of
thread time; the peak is the growth of the process beyond the network itself. Both engines prune the
first half of the channels of every group, and the pruned networks have equal size, as the printed
numbers of parameters show. "exact to": the largest relative difference between our masked and our
shrunk network for a random half of every group.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        head: the module whose outputs are never pruned.
        only: every linear layer that loses channels has one of these words in its name
            (Torch-Pruning would prune through LayerNorm).
    """

    build: Callable[[], nn.Module]
    example: Any
    head: str
    only: tuple[str, ...] = ("",)


@dataclass
class Taken:
    """Seconds per round, and the largest growth of the process in bytes."""

    find: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    peak: int = 0
    params: int = 0


def torchvision_case(name: str, head: str) -> Case:
    from torchvision.models import get_model

    return Case(lambda: get_model(name, weights=None), torch.randn(1, 3, 224, 224), head)


def bert_case() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    words = torch.randint(0, 30_000, (1, 128))
    return Case(
        lambda: BertForSequenceClassification(BertConfig()),
        {"input_ids": words},
        "classifier",
        ("attention.self", "intermediate.dense"),
    )


CASES: dict[str, Callable[[], Case]] = {
    "resnet50": lambda: torchvision_case("resnet50", "fc"),
    "vgg16_bn": lambda: torchvision_case("vgg16_bn", "classifier.6"),
    "mobilenet_v2": lambda: torchvision_case("mobilenet_v2", "classifier.1"),
    "bert_base": bert_case,
}


def memory(line: str) -> int:
    """A line of /proc/self/status in bytes; 0 if there is none."""
    status = Path("/proc/self/status")
    for row in status.read_text().splitlines() if status.exists() else ():
        if row.startswith(line):
            return int(row.split()[1]) * 1024
    return 0


def forget_peak() -> int:
    """Return freed memory to the kernel and reset its high-water mark."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    if (mark := Path("/proc/self/clear_refs")).exists():
        mark.write_text("5")
    return memory("VmRSS")


def half(units: Units, only: tuple[str, ...]) -> PruningPlan:
    """The plan that removes the first half of the channels of every prunable group."""
    keep = {}
    for group in units.prunable:
        if any(word in group.name for word in only):
            keep[group.name] = torch.arange(group.size) >= group.size // 2
    return PruningPlan(Granularity.STRUCTURED, keep)


def ours(model: nn.Module, case: Case, taken: Taken) -> None:
    began = time.thread_time()
    units = trace_units(model, case.example, (case.head,))
    found = time.thread_time()
    shrink(half(units, case.only), model, units)
    taken.cut.append(time.thread_time() - found)
    taken.find.append(found - began)


def torch_pruning(model: nn.Module, case: Case, taken: Taken) -> None:
    import torch_pruning as tp

    others = [
        layer
        for name, layer in model.named_modules()
        if name == case.head
        or (isinstance(layer, nn.Linear) and not any(word in name for word in case.only))
    ]
    began = time.thread_time()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=case.example)
    groups = list(
        graph.get_all_groups(ignored_layers=others, root_module_types=[nn.Conv2d, nn.Linear])
    )
    found = time.thread_time()
    for group in groups:
        first = group[0]
        gone = list(range(len(first.idxs) // 2))
        graph.get_pruning_group(first.dep.target.module, first.dep.handler, gone).prune()
    taken.cut.append(time.thread_time() - found)
    taken.find.append(found - began)


ENGINES = {"ours": ours, "Torch-Pruning": torch_pruning}


def measure(case: Case, rounds: int) -> dict[str, Taken]:
    """Both engines in turn, each on its own copy; the first round is a warm-up."""
    results = {name: Taken() for name in ENGINES}
    dense = case.build().eval()
    for turn in range(rounds + 1):
        for name, engine in ENGINES.items():
            model = copy.deepcopy(dense)
            taken = results[name] if turn else Taken()
            before = forget_peak()
            engine(model, case, taken)
            taken.peak = max(taken.peak, memory("VmHWM") - before)
            taken.params = sum(p.numel() for p in model.parameters())
            del model
    return results


def exactness(case: Case) -> float:
    """Largest difference between masked and shrunk outputs, relative to the largest output."""
    masked = case.build().eval()
    units = trace_units(masked, case.example, (case.head,))
    shrunk = copy.deepcopy(masked)
    halves = half(units, case.only).keep.items()
    mixed = {name: mask[torch.randperm(mask.numel())] for name, mask in halves}
    plan = PruningPlan(Granularity.STRUCTURED, mixed)
    enforce(plan, masked, units)
    shrink(plan, shrunk, units)
    with torch.no_grad():
        a, b = (_outputs(m, case.example) for m in (masked, shrunk))
    return float((a - b).abs().max() / a.abs().max())


def _outputs(model: nn.Module, example: Any) -> torch.Tensor:
    return model(**example).logits if isinstance(example, dict) else model(example)


def report(names: list[str], rounds: int) -> Iterator[str]:
    for name in names:
        case = CASES[name]()
        results = measure(case, rounds)
        yield f"{name}: ours exact to {exactness(case):.1e}"
        totals = {}
        for engine, taken in results.items():
            find, cut = statistics.median(taken.find), statistics.median(taken.cut)
            both = [f + c for f, c in zip(taken.find, taken.cut, strict=True)]
            totals[engine] = statistics.median(both)
            yield (
                f"  {engine:14s} find {find:.3f} s  cut {cut:.3f} s  both {totals[engine]:.3f} s  "
                f"peak +{taken.peak / 2**20:,.0f} MiB  {taken.params:,} parameters left"
            )
        yield f"  ratio {totals['ours'] / totals['Torch-Pruning']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch_pruning")
    for line in report(asked.networks, asked.rounds):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
