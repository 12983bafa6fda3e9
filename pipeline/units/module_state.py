"""What the modules of a network hold besides tensors: attributes, hooks, caches.

A forward may set attributes, fill a cache in a dict or install hooks. A trace takes a copy of every
container before and puts it back after each run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

OPAQUE = (nn.Module, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""Not looked into: modules are visited themselves, code holds no state of the network."""


class State:
    """Contents of every dict, list, set and plain object reachable from modules, and the values of
    tensors that are neither parameters nor buffers."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._seen: set[int] = set()
        for layer in layers:
            known = {id(x) for x in (*layer._parameters.values(), *layer._buffers.values())}
            self._seen |= known
        for layer in layers:
            self._visit(layer.__dict__)

    def restore(self) -> None:
        """Put everything back in place; the containers stay the same objects."""
        for container, content in self._containers:
            if not _unchanged(container, content):
                container.clear()
                (container.update if hasattr(container, "update") else container.extend)(content)
        for tensor, version, values in self._tensors:
            if tensor._version != version:
                tensor.data.copy_(values)

    def _visit(self, root: Any) -> None:
        waiting = [root]
        while waiting:
            item = waiting.pop()
            if item is None or isinstance(item, (str, int, float, bool, *OPAQUE)):
                continue
            if id(item) in self._seen:
                continue
            self._seen.add(id(item))
            if isinstance(item, Tensor):
                self._tensors.append((item, item._version, item.detach().clone()))
            elif isinstance(item, (dict, list, set, deque)):
                self._containers.append((item, item.copy()))
                waiting.extend(_members(item))
            elif isinstance(item, tuple):
                waiting.extend(item)
            elif isinstance(own := getattr(item, "__dict__", None), dict):
                waiting.append(own)


def _members(container: Any) -> Iterator[Any]:
    return iter(container.values() if isinstance(container, dict) else container)


def _unchanged(now: Any, before: Any) -> bool:
    """The same objects in the same order."""
    if len(now) != len(before):
        return False
    if isinstance(now, set):
        return bool(now == before)
    same = all(a is b for a, b in zip(_members(now), _members(before), strict=True))
    return same and (not isinstance(now, dict) or list(now) == list(before))
