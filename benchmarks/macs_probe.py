"""Time to compute the MACs of pruned ResNet-50s: by arithmetic, and by rebuilding the network.

    python -m benchmarks.macs_probe [--probes 100] [--rebuilds 3]

One thread, CPU time. Every probe is a different plan (uniformly random gates, 0 to 90% of the
channels removed). If a network is rebuilt (copy, surgery, count), both results must be equal.
Goal: 100 probes of ResNet-50 in under a second.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from methods.gates import Gates, GatesConfig
from pipeline.data.info import DatasetInfo
from pipeline.measure.count import MacsModel, count
from pipeline.registry import build_model, model_spec
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units

FAMILY, NAME = "resnet_imagenet", "resnet50"
EXPANDED = 80  # Pruning from Scratch: 1.25 of the standard 64
DEEPEST = 0.9


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def network() -> tuple[nn.Module, Tensor, Units]:
    """Expanded ResNet-50, an image and its units."""
    info = DatasetInfo("imagenet", (3, 224, 224), 1000)
    model = build_model(FAMILY, NAME, info, {"width": EXPANDED})
    image = torch.zeros(1, 3, 224, 224)
    return model, image, trace_units(model, image, model_spec(FAMILY, NAME).never_prune)


def plans(model: nn.Module, units: Units, number: int) -> list[PruningPlan]:
    """Plans of rising sparsity from random gates."""
    torch.manual_seed(0)
    groups = Gates(GatesConfig()).gated_groups(model, units)
    gates = {g.name: torch.rand(g.size) for g in groups}
    targets = (Target(rule="fraction", value=DEEPEST * i / number) for i in range(number))
    return [select(gates, Granularity.STRUCTURED, target) for target in targets]


def rebuilt_macs(plan: PruningPlan, model: nn.Module, image: Tensor, units: Units) -> int:
    """MACs of the rebuilt network."""
    smaller = copy.deepcopy(model)
    shrink(plan, smaller, units)
    return count(smaller, image).macs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--rebuilds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, image, units = network()
    tried = plans(model, units, options.probes)
    probed: list[int] = []
    models: list[MacsModel] = []
    built = timed(lambda: models.append(MacsModel(model, image, units)))
    probing = timed(lambda: probed.extend(models[0].macs(plan) for plan in tried))
    gates = {name: torch.rand(mask.numel()) for name, mask in tried[0].keep.items()}
    target = Target(rule="macs", value=0.5)
    search = timed(lambda: select(gates, Granularity.STRUCTURED, target, models[0].macs))
    step = max(1, options.probes // options.rebuilds)
    sample = range(0, options.probes, step)
    rebuilt: list[int] = []
    rebuilding = timed(
        lambda: rebuilt.extend(rebuilt_macs(tried[i], model, image, units) for i in sample)
    )
    if rebuilt != [probed[i] for i in sample]:
        raise SystemExit(f"macs_probe: probed {[probed[i] for i in sample]}, counted {rebuilt}")
    each = rebuilding / len(sample)
    sys.stdout.write(
        f"cost model built once: {built:.3f} s\n"
        f"{options.probes} probes: {probing:.3f} s\n"
        f"{options.probes} rebuilt and counted networks: {each * options.probes:.1f} s "
        f"({len(sample)} measured), {each * options.probes / probing:.0f} times as long\n"
        f"one whole search (select, macs 0.5): {search:.3f} s\n"
        f"torch {torch.__version__}, 1 thread, CPU time\n"
    )


if __name__ == "__main__":
    main()
