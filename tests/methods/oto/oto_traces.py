"""Reader of the OTO reference traces in `data/` (recorded from the authors' programs, float64)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.training.recipe import OptimizerConfig
from pipeline.units.groups import ChannelGroup, Role, Slice

DATA = Path(__file__).parent / "data"


def sgd(lr: float, momentum: float = 0.0, decay: float = 0.0) -> OptimizerConfig:
    """The recipe's optimizer block; plain SGD by default. lr may be 0."""
    return direction("sgd", lr, momentum, decay)


def direction(
    name: str, lr: float, momentum: float = 0.0, decay: float = 0.0, **more: Any
) -> OptimizerConfig:
    """Like `sgd`, for any optimizer with a row-wise form."""
    made = OptimizerConfig(name=name, momentum=momentum, weight_decay=decay, **more)
    return made.model_copy(update={"lr": lr})


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def tensor(trace: dict[str, Any], name: str, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(trace["shapes"][name])


def parameters(trace: dict[str, Any]) -> dict[str, nn.Parameter]:
    return {n: nn.Parameter(tensor(trace, n, v)) for n, v in trace["init"].items()}


def set_grads(trace: dict[str, Any], step: dict[str, Any], named: dict[str, nn.Parameter]) -> None:
    for name, p in named.items():
        p.grad = tensor(trace, name, step["grad"][name])


def check_weights(
    trace: dict[str, Any], step: dict[str, Any], named: dict[str, nn.Parameter]
) -> None:
    for name, p in named.items():
        want = tensor(trace, name, step["weight"][name])
        message = f"{name} after step {step['k']}"
        torch.testing.assert_close(
            p.detach(), want, rtol=0, atol=1e-10, msg=lambda m, t=message: f"{t}: {m}"
        )


def piece(name: str, index: Tensor, dim: int = 0, role: Role = "producer") -> Slice:
    return Slice(name, dim, role, index if index.ndim == 2 else index[:, None])


def plain_group(name: str, size: int, tensors: Sequence[str], dim: int = 0) -> ChannelGroup:
    return ChannelGroup(name, size, tuple(piece(t, torch.arange(size), dim) for t in tensors))


def zero_rows(group: ChannelGroup, named: dict[str, nn.Parameter]) -> list[int]:
    """Channels whose weights are all exactly zero, by plain indexing."""
    alive = torch.zeros(group.size, dtype=torch.bool)
    for s in group.zig:
        rows = named[s.tensor].detach().movedim(s.dim, 0)
        alive |= (rows[s.index].flatten(1) != 0).any(1)
    return (~alive).nonzero().flatten().tolist()


class _NoHostReads(TorchDispatchMode):
    """Refuses every operator whose result the host must wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")
        if any(word in str(func) for word in waits):
            raise AssertionError(f"{func} waits for the device")
        if "aten.index" in str(func) and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for a in args[1:2] for i in a or ()
        ):
            raise AssertionError("boolean indexing waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    with _NoHostReads():
        yield


class _NoLargeMemory(TorchDispatchMode):
    """Refuses every operator that allocates a tensor of at least so many elements."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made_here = found if isinstance(found, tuple) else (found,)
        for kind, made in zip(func._schema.returns, made_here, strict=False):
            for t in made if isinstance(made, list) else (made,):
                if isinstance(t, Tensor) and t.numel() >= self.numbers and kind.alias_info is None:
                    raise AssertionError(f"{func} makes {t.numel()} numbers")
        return found


def no_large_memory(numbers: int) -> TorchDispatchMode:
    """On a CPU, allocating memory of the size of a weight costs more than a step's arithmetic."""
    return _NoLargeMemory(numbers)


def wide_problem() -> tuple[dict[str, nn.Parameter], list[ChannelGroup]]:
    """Two weights of 8,000 elements and eight channels each."""
    generator = torch.Generator().manual_seed(0)
    named = {n: nn.Parameter(torch.randn(8, 1000, generator=generator)) for n in ("a", "b")}
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=generator)
    return named, [plain_group(n, 8, (n,)) for n in named]


def is_plain_tree(tree: Any) -> bool:
    """Whether it holds only dicts, lists, numbers, strings, None and tensors."""
    if isinstance(tree, dict):
        return all(isinstance(k, str | int) and is_plain_tree(v) for k, v in tree.items())
    if isinstance(tree, list | tuple):
        return all(is_plain_tree(v) for v in tree)
    return tree is None or isinstance(tree, bool | int | float | str | Tensor)
