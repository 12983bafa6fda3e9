"""A CUDA graph in software, to try on a CPU what a GPU would do with a noted step.

Like the real one it holds operators with the memory and numbers they were called with, knows
nothing of the Python around them, has done nothing when it has been noted, and fills the same
results at every replay. It refuses what a stream that is being noted refuses: results that the host
waits for, and tensors made of many of Python's numbers (one is handed over with the call). Where a
real one would read memory that was given back meanwhile, it says so: it holds none from outside.
What it cannot show: kernels that do not run in a graph, memory pools, streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")


class Refused(RuntimeError):
    """A CUDA stream that is being noted would refuse this, or its replay read what is not there."""


class Outside(NamedTuple):
    """A tensor by where it lies, which keeps nothing alive."""

    memory: StorageWeakRef
    dtype: torch.dtype
    place: tuple[int, torch.Size, tuple[int, ...]]

    @classmethod
    def of(cls, x: Tensor) -> Outside:
        place = (x.storage_offset(), x.size(), x.stride())
        return cls(StorageWeakRef(x.untyped_storage()), x.dtype, place)

    def tensor(self) -> Tensor:
        if self.memory.expired():
            raise Refused(f"memory of shape {tuple(self.place[1])} was given back after noting")
        storage = torch.UntypedStorage._new_with_weak_ptr(self.memory.cdata)
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.place)


class Notes(TorchDispatchMode):
    """Does what it sees, notes it, and can undo all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}  # memory from outside, and what it held
        self._own: set[int] = set()  # memory made while noting
        self._random = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if str(func).startswith("profiler."):
            return func(*args, **kwargs)
        number = name.startswith("lift_fresh") and args[0].ndim == 0
        if any(word in name for word in WAITS) or (name.startswith("lift_fresh") and not number):
            raise Refused(str(func))
        if number:
            self._own.add(args[0].untyped_storage().data_ptr())
        for memory in _memories((args, kwargs)):
            if memory.data_ptr() not in self._own and memory.data_ptr() not in self._before:
                self._before[memory.data_ptr()] = (memory, memory.clone())
        out = func(*args, **kwargs)
        inputs = {memory.data_ptr() for memory in _memories((args, kwargs))}
        self._own |= {m.data_ptr() for m in _memories(out)} - inputs
        self.calls.append((func, *tree_map(self._noted, (args, kwargs, out))))
        return out

    def _noted(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.numel():
            return value
        inside = value.untyped_storage().data_ptr() in self._own
        return value if inside else Outside.of(value)

    def undo(self) -> None:
        for memory, held in self._before.values():
            memory.copy_(held)
        self._before.clear()
        torch.set_rng_state(self._random)


def _memories(tree: Any) -> Iterator[Any]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.numel():
            yield leaf.untyped_storage()


def _there(tree: Any) -> Any:
    return tree_map(
        lambda v: v.tensor() if isinstance(v, Outside) else v,
        tree,
        is_leaf=lambda v: isinstance(v, Outside),
    )


@torch.no_grad()
def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Call the operator and put what is new in its results where they were the first time."""
    returns = func._schema.returns
    writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
    if returns and all(r.alias_info for r in returns) and not writes:
        return  # a view: it sees what its base holds
    new = func(*_there(args), **_there(kwargs))
    one = len(returns) == 1
    for kind, old, fresh in zip(
        returns, (out,) if one else out or (), (new,) if one else new or (), strict=True
    ):
        if kind.alias_info is None:
            for a, b in zip(tree_leaves(old), tree_leaves(fresh), strict=True):
                if isinstance(a, Tensor):
                    a.copy_(b)


def noted(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """In place of `pipeline.training.options.cuda_graph.captured_on_gpu`."""
    notes = Notes()
    with notes:
        found = work()
    notes.undo()

    def replay() -> None:
        for call in notes.calls:
            _again(*call)

    return replay, found
