"""Torch-Pruning on the networks of the coverage table, and the CPU time of both engines.

    python -m benchmarks.zoo.peer [--only resnet18 llama] [--again]

Needs `pip install -e .[benchmarks,zoo]`. Rows are kept in benchmarks/zoo/peer.jsonl; run in slices
by --only, then `python -m benchmarks.coverage --only` writes the table. One thread, both
engines in turns in one process, the smallest of three times each. Classifiers of torchvision are
timed at 224 pixels, everything else on the inputs of the coverage table. Memory is the peak above
what the process held before, each engine in a process of its own; --add-memory adds it to old rows.

Exact: of every group, half of the channels are zeroed in a copy (weights and biases of the layers
that make or scale them) and removed from another by Torch-Pruning; both must agree in float64, as
ours must. The layers that make the network's outputs are given to Torch-Pruning as ignored.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.units.groups import Units, layer_of
from pipeline.units.heads import with_open_heads
from pipeline.units.rms_norms import AllDouble
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import _cast, outputs, randomise_bn, relative
from tests.zoo.check import TOLERANCE
from tests.zoo.names import DETECTION, VIDEO
from tests.zoo.networks import Network, networks

ROWS = Path(__file__).with_suffix(".jsonl")
LIMIT = 120
"""Seconds of processor time per network."""
ROUNDS = 3


@dataclass(frozen=True)
class PeerRow:
    """Torch-Pruning on one network.

    Attributes:
        difference: between masked and pruned outputs, relative; None if one did not run.
        share: part of the parameters in layers of its groups.
        smaller: did it lose parameters?
        theirs, ours: CPU seconds to find the groups; None where that failed.
        their_memory, our_memory: bytes that this needs at its peak; None where it was not measured.
    """

    name: str
    traced: bool
    difference: float | None
    share: float
    smaller: bool
    theirs: float | None
    ours: float | None
    reason: str = ""
    their_memory: int | None = None
    our_memory: int | None = None

    @property
    def exact(self) -> bool:
        return self.smaller and self.difference is not None and self.difference <= TOLERANCE


def read_rows() -> dict[str, PeerRow]:
    """By name; the last row of a network counts."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {row.name: row for row in (PeerRow(**json.loads(line)) for line in lines)}


def groups_of(model: nn.Module, example: Any, heads: list[str]) -> tuple[Any, list[Any]]:
    """Torch-Pruning's graph and groups."""
    import torch_pruning as tp

    ignored = [model.get_submodule(name) for name in heads]
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    kinds = [nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding]
    known = [k for k in kinds if k in graph.REGISTERED_PRUNERS or k is not nn.Embedding]
    return graph, list(graph.get_all_groups(ignored_layers=ignored, root_module_types=known))


def heads_of(model: nn.Module, units: Units) -> list[str]:
    """Layers that make the network's outputs."""
    made = {
        layer_of(s.tensor)
        for g in units.groups
        if "network's output" in g.reason
        for s in g.slices
        if s.role == "producer"
    }
    return [name for name, _ in model.named_modules() if name in made]


def pruned_difference(model: nn.Module, example: Any, heads: list[str]) -> tuple[float, bool]:
    """Half of every group: masked against pruned, and whether parameters went."""
    masked = randomise_bn(copy.deepcopy(model), torch.Generator().manual_seed(1)).double()
    pruned = copy.deepcopy(masked)
    inputs = _cast(example, torch.float64)
    graph, groups = groups_of(pruned, inputs, heads)
    names = {id(m): name for name, m in pruned.named_modules()}
    roots = [(g[0][0].target.module, g[0][0].handler, _half(len(g[0][1]))) for g in groups]
    chosen = [graph.get_pruning_group(*root) for root in roots]
    with torch.no_grad():
        for group in chosen:
            for dep, idxs in group:
                name = names.get(id(dep.target.module))
                if name is not None and graph.is_out_channel_pruning_fn(dep.handler):
                    _zero(masked.get_submodule(name), idxs)
    before = sum(p.numel() for p in pruned.parameters())
    for root in roots:
        graph.get_pruning_group(*root).prune()
    left = sum(p.numel() for p in pruned.parameters())
    with AllDouble():
        return relative(outputs(masked, inputs), outputs(pruned, inputs)), left < before


def _half(n: int) -> list[int]:
    return list(range(n // 2))


def _zero(layer: nn.Module, idxs: list[int]) -> None:
    """Rows of a weight (columns of an embedding or a transposed convolution) and of the bias."""
    columns = isinstance(layer, nn.Embedding) or getattr(layer, "transposed", False)
    for key, p in layer._parameters.items():
        if p is not None:
            p.index_fill_(1 if columns and key == "weight" else 0, torch.tensor(idxs), 0.0)


def _cpu(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def timed(model: nn.Module, example: Any, heads: list[str]) -> tuple[float, float]:
    """Theirs and ours, in turns."""
    theirs, ours = [], []
    opened = with_open_heads(copy.deepcopy(model))
    for _ in range(ROUNDS):
        theirs.append(_cpu(lambda: groups_of(model, example, heads)))
        ours.append(_cpu(lambda: trace_units(opened, example)))
    return min(theirs), min(ours)


def memory(network: Network, engine: str, heads: list[str]) -> int | None:
    """Peak of the memory that an engine needs beside the network, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.zoo.peer", "--memory", engine, network.id, *heads]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _peak(engine: str, name: str, *heads: str) -> int:
    """Bytes above what the process held before, with its libraries loaded by another network and
    what was freed given back. Linux counts the peak from the reset on."""
    network = next(n for n in networks() if n.id == name)
    model, example = network.build().eval(), large(network)
    theirs = engine == "theirs"
    model = model if theirs else with_open_heads(model)
    little = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def run(network: nn.Module, example: Any, own: list[str]) -> Any:
        return groups_of(network, example, own) if theirs else trace_units(network, example)

    run(little, torch.rand(1, 3, 9, 9), [])
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    kept = run(model, example, list(heads))
    del kept
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """Of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def large(network: Network) -> Any:
    """The example at 224 pixels, for the classifiers of torchvision."""
    example = network.example()
    name = network.id.partition("/")[2]
    others = (*DETECTION, *VIDEO, "fcn_", "deeplab", "lraspp")
    classifier = network.id.startswith("torchvision/") and not any(word in name for word in others)
    if classifier and example.shape[-1] < 224:
        return torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return example


def measure(network: Network) -> PeerRow:
    """Never raises: a failure is a reason."""
    torch.manual_seed(0)
    model, example = network.build().eval(), network.example()
    units = trace_units(with_open_heads(copy.deepcopy(model)), example)
    heads, traced, share = heads_of(model, units), False, 0.0
    difference, smaller, reason = None, False, ""
    times: tuple[float | None, float | None] = (None, None)
    peaks: tuple[int | None, int | None] = (None, None)
    try:
        _, groups = groups_of(copy.deepcopy(model), example, heads)
        traced, share = True, _share(groups, model)
        times = timed(copy.deepcopy(model), large(network), heads)
        peaks = memory(network, "theirs", heads), memory(network, "ours", heads)
        difference, smaller = pruned_difference(model, example, heads)
    except TimeoutError as error:
        reason = str(error)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first}"[:160]
    return PeerRow(network.id, traced, difference, share, smaller, *times, reason, *peaks)


def with_memory(row: PeerRow, network: Network) -> PeerRow:
    """A row of before with the memory of both engines, its other figures as they are."""
    torch.manual_seed(0)
    model = with_open_heads(network.build().eval())
    heads = heads_of(model, trace_units(model, network.example()))
    theirs, ours = (memory(network, engine, heads) for engine in ("theirs", "ours"))
    return replace(row, their_memory=theirs, our_memory=ours)


def _share(groups: list[Any], model: nn.Module) -> float:
    held: Mapping[int, Tensor] = {
        id(p): p
        for group in groups
        for dep, _ in group
        for p in (
            [dep.target.module]
            if isinstance(dep.target.module, nn.Parameter)
            else dep.target.module.parameters()
        )
    }
    total = sum(p.numel() for p in model.parameters())
    return min(1.0, sum(p.numel() for p in held.values()) / max(1, total))


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT} seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=[""], help="networks whose library/name contains one of these"
    )
    parser.add_argument("--again", action="store_true", help="measure those with a row too")
    parser.add_argument("--add-memory", action="store_true", help="only that, to rows without")
    parser.add_argument("--memory", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if asked.memory:
        sys.stdout.write(f"{_peak(*asked.memory)}\n")
        return
    rows = read_rows()
    known = set() if asked.again else rows.keys()
    signal.signal(signal.SIGVTALRM, _too_long)
    for network in networks():
        if not any(word in network.id for word in asked.only):
            continue
        if asked.add_memory:
            before = rows.get(network.id)
            if before is not None and before.traced and before.our_memory is None:
                _append(with_memory(before, network))
        elif network.id not in known:
            signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
            try:
                row = measure(network)
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            _append(row)


def _append(row: PeerRow) -> None:
    sys.stderr.write(f"{row}\n")
    with ROWS.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
