"""What the modules of a network hold besides tensors: attributes, hooks, caches.

A forward may set attributes, fill a cache in a dict or install hooks. A trace takes a copy of every
container before and puts it back after each run.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Iterable
from functools import cache, partial
from operator import is_
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

OPAQUE = (nn.Module, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""Not looked into: modules are visited themselves, code holds no state of the network."""

PLAIN = (type(None), str, int, float, bool, *OPAQUE)

_Remembering = type(cache(len))
ATOMS = frozenset({type(None), str, int, float, bool, BuiltinFunctionType})
TREE = frozenset({"_modules", "_parameters", "_buffers"})
_NOTHING = CellType()
"""A variable that has no value yet."""

CONTAINERS = (dict, list, set, deque, tuple)
CLEARED = frozenset({dict, OrderedDict, list, set, deque})
"""Where one of these was empty, it is enough to clear it."""


class State:
    """Contents of every dict, list, set and plain object reachable from modules, and the values of
    tensors that are neither parameters nor buffers.

    A module has a dozen empty dicts for hooks: what was empty is kept apart, to be looked at fast.
    """

    def __init__(self, layers: Collection[nn.Module]) -> None:
        self._empty: list[Any] = []
        self._dicts: list[tuple[dict[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = []
        self._lists: list[tuple[Any, tuple[Any, ...]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._seen: set[int] = set()
        self._stores: set[int] = set()
        self._functions = [(f, f.cache_info().misses) for f in _functions_with_caches(layers)]
        self._outside: list[Any] | None = list(_outside(layers))
        self._layers = layers
        self.remembered = False
        """Did the network's code leave something outside the modules: a result that a function
        remembers, a value in a global variable or in a class?"""
        self.touched: dict[int, Any] = {}
        """By their ids, what was not as before when it was put back (the stores of parameters
        aside): containers that were empty, None for all others."""
        for layer in layers:
            self._seen.update(map(id, layer._parameters.values()))
            self._seen.update(map(id, layer._buffers.values()))
            self._stores.update((id(layer._parameters), id(layer._buffers)))
        for layer in layers:
            self._visit(layer.__dict__)

    def _forget(self) -> None:
        """Functions of the network's code that remembered a result (`lru_cache`) start anew: the
        next forward would run fewer operators."""
        for i, (function, misses) in enumerate(self._functions):
            if function.cache_info().misses != misses:
                self.remembered = True
                function.cache_clear()
                self._functions[i] = function, 0

    def restore(self, ours: Collection[int] = ()) -> None:
        """Put everything back in place; the containers stay the same objects.

        Args:
            ours: ids of containers that no forward wrote to.
        """
        self._forget()
        if self._outside is not None:  # the first forward tells
            now = list(_outside(self._layers))
            same = len(now) == len(self._outside) and all(map(is_, now, self._outside))
            self.remembered, self._outside = self.remembered or not same, None
        for container in [c for c in self._empty if c]:
            if id(container) not in ours:
                self.touched[id(container)] = container
            container.clear()
        changed: list[Any] = []
        for found, keys, values in self._dicts:
            same = len(found) == len(keys) and all(map(is_, found.values(), values))
            if not (same and tuple(found) == keys):
                changed.append(found)
                found.clear()
                found.update(dict(zip(keys, values, strict=True)))
        for items, before in self._lists:
            if not (len(items) == len(before) and all(map(is_, items, before))):
                changed.append(items)
                items.clear()
                items.extend(before)
        self._restore_values(changed)
        own = (x for x in changed if id(x) not in self._stores and id(x) not in ours)
        self.touched |= {id(x): None for x in own}

    def _restore_values(self, changed: list[Any]) -> None:
        for members, then in self._sets:
            if members != then:
                changed.append(members)
                members.clear()
                members.update(then)
        for tensor, version, numbers in self._tensors:
            if tensor._version != version:
                changed.append(tensor)
                tensor.data.copy_(numbers)

    def _visit(self, root: Any) -> None:
        waiting, seen, empty = [root], self._seen, self._empty
        while waiting:
            item = waiting.pop()
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, Tensor):
                self._tensors.append((item, item._version, item.detach().clone()))
            elif isinstance(item, CONTAINERS):
                for member in self._noted(item):
                    kind = type(member)
                    if kind in CLEARED and not member:
                        empty.append(member)
                    elif not _plain(kind):  # type: ignore[arg-type]
                        waiting.append(member)
            elif isinstance(own := getattr(item, "__dict__", None), dict):
                waiting.append(own)

    def _noted(self, container: Any) -> Iterable[Any]:
        """Copy it; return its members."""
        if isinstance(container, dict):
            values = tuple(container.values())
            self._dicts.append((container, tuple(container), values))
            return values
        if isinstance(container, set):
            self._sets.append((container, set(container)))
        elif not isinstance(container, tuple):
            self._lists.append((container, tuple(container)))
        return container  # type: ignore[no-any-return]


def _functions_with_caches(layers: Iterable[nn.Module]) -> list[Any]:
    """Those in the modules, and among the methods, of the layers' classes, also inside functions
    that decorate them."""
    found = {}
    for names in _places(layers):
        for x in names.values():
            cells = x.__closure__ if type(x) is FunctionType else None
            inside = (c.cell_contents for c in cells or () if c != _NOTHING)
            found.update({id(f): f for f in (x, *inside) if type(f) is _Remembering})
    return list(found.values())


def _places(layers: Iterable[nn.Module]) -> list[Any]:
    """Variables of the layers' classes and of the modules that these are written in."""
    kinds = {base: None for layer in layers for base in type(layer).__mro__}
    names = {kind.__module__: None for kind in kinds}
    own = [sys.modules.get(n) for n in names if n.partition(".")[0] not in ("torch", "builtins")]
    return [vars(place) for place in (*own, *kinds) if place is not None]


def _outside(layers: Iterable[nn.Module]) -> Iterable[Any]:
    """What they hold, in dicts, lists and sets too."""
    for names in _places(layers):
        for name, x in names.items():
            if not name.startswith("__"):
                yield x
                if type(x) in CLEARED:
                    yield from x.values() if isinstance(x, dict) else x


@cache
def _plain(kind: Hashable) -> bool:
    """Is there nothing in it that a forward may change?"""
    return issubclass(kind, PLAIN)  # type: ignore[arg-type]


def reached(layer: nn.Module) -> set[int]:
    """Ids of all that the attributes of a module lead to, code and its variables included, but not
    through its children or other modules."""
    found: set[int] = set()
    waiting = [value for key, value in layer.__dict__.items() if key not in TREE]
    waiting.append(layer.__dict__)
    while waiting:
        item = waiting.pop()
        if type(item) in ATOMS or id(item) in found:
            continue
        found.add(id(item))
        if item is layer.__dict__ or isinstance(item, (nn.Module, type, ModuleType, Tensor)):
            continue
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, CONTAINERS):
            waiting.extend(item)
        elif isinstance(item, MethodType):
            waiting.append(item.__self__)
        elif isinstance(item, FunctionType):
            cells = item.__closure__ or ()
            waiting.extend(c.cell_contents for c in cells if c != _NOTHING)
        else:
            if isinstance(item, partial):
                waiting += [item.func, item.args, item.keywords]
            if isinstance(own := getattr(item, "__dict__", None), dict):
                waiting.append(own)
    return found


def hooks_of(layer: nn.Module) -> set[int]:
    """Ids of the containers of its hooks."""
    return {id(own) for key, own in vars(layer).items() if "_hooks" in key}
