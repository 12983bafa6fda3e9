"""Modules that ran in a smaller forward as they would run in the next.

A search makes many forwards that differ in a few modules. A module is not run again where all that
its result can depend on is what it was in a run that went as foreseen: the sizes of its arguments
and of the tensors below it, the numbers set in it, and what is left of the ids in its steps. Its
outputs are then made anew in the sizes that they had, and caches filled as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from pipeline.units.module_state import reached
from pipeline.units.modules import layers_of
from pipeline.units.modules import tensors_in as tensors_in_layers
from pipeline.units.trace.book import distinct
from pipeline.units.trace.shadow import Ids
from pipeline.units.trace.skipped.layouts import META
from pipeline.units.trace.steps import Step

FEW = 8
"""Steps up to which a module is rather run than looked up."""

Settings = frozenset[tuple[str, str, int]]
"""Path of a module, name of an attribute, its value."""

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class Position(Protocol):
    """Where a smaller forward stands, and which ids it keeps."""

    at: int
    keep: Any


class _OpaqueError(Exception):
    """An argument or a result that sizes do not describe."""


@dataclass(frozen=True)
class _Run:
    """A run that went as foreseen.

    Attributes:
        ids: that occur in its steps; `kept`: which of them were kept.
        stop: the step after its last.
        outs: the result, described.
        caches: what they held then.
    """

    ids: Ids
    kept: bytes
    stop: int
    outs: Any
    caches: list[Any]


class Modules:
    """Of one traced network.

    Args:
        touched: what a forward left in the modules (see `State.touched`).
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        steps: Sequence[Step],
        touched: Mapping[int, Any],
    ) -> None:
        self._layers, self._steps = layers, steps
        self._runs: dict[Hashable, list[_Run]] = {}
        self._ids: dict[tuple[int, int], Ids] = {}
        self._tensors: dict[str, list[str]] = {}
        self._below: dict[str, set[int]] = {}
        self._caches: dict[str, list[Any]] = {}
        self._choose(touched)

    def _choose(self, touched: Mapping[int, Any]) -> None:
        """Modules of many steps that lead to no module outside them, and write to nothing but their
        result and to caches, which were empty before."""
        known = {id(layer) for layer in self._layers.values()}
        reach = {id(layer): reached(layer) for layer in self._layers.values()}
        lengths = Counter(path for step in self._steps for path in set(step.where))
        for path, layer in self._layers.items():
            if lengths[path] <= FEW or not path or isinstance(layer, torch.jit.ScriptModule):
                continue
            own = layers_of(layer, path)
            below = {id(m) for _, m in own}
            found = set().union(*(reach[one] for one in below))
            written = [touched[key] for key in found & touched.keys()]
            if found & known - below or any(cache is None for cache in written):
                continue
            if any(isinstance(m, nn.RNNBase) for _, m in own):  # they are shortened
                continue
            self._below[path], self._tensors[path] = below, list(tensors_in_layers(own))
            self._caches[path] = written

    def install(
        self, position: Position, sizes: Mapping[str, tuple[int, ...]], settings: Settings
    ) -> list[nn.Module]:
        """Into the modules themselves, which are returned.

        Args:
            sizes: of the tensors that are smaller.
            settings: numbers that are set for this forward.
        """
        set_in = [(id(self._layers[path]), (path, name, n)) for path, name, n in sorted(settings)]
        installed = []
        for path in self._below:
            layer = self._layers[path]
            if "forward" not in layer.__dict__:
                run = partial(self._forward, path, layer.forward, (position, sizes, set_in))
                layer.__dict__["forward"] = wraps(layer.forward)(run)
                installed.append(layer)
        return installed

    def _forward(self, path: str, forward: Any, now: tuple[Any, ...], *args: Any, **kw: Any) -> Any:
        position, sizes, set_in = now
        held: list[Tensor] = []
        caches = self._caches[path]
        try:
            if any(caches):  # an earlier call has filled them
                raise _OpaqueError
            given = _described((args, kw), held)
        except _OpaqueError:
            return forward(*args, **kw)
        start, below = position.at, self._below[path]
        shapes = tuple([sizes.get(name) for name in self._tensors[path]])
        numbers = tuple([said for layer, said in set_in if layer in below])
        runs = self._runs.setdefault((path, start, given, shapes, numbers), [])
        for run in runs:
            if position.keep[run.ids].tobytes() == run.kept:
                position.at = run.stop
                for cache, filled in zip(caches, run.caches, strict=True):
                    _fill(cache, filled)
                with _disable_current_modes():
                    return _made(run.outs, held)
        out = forward(*args, **kw)
        again: list[Tensor] = []
        with suppress(_OpaqueError):
            if _described((args, kw), again) == given:
                outs, ids = _described(out, again), self._ids_in(start, position.at)
                kept, copies = position.keep[ids].tobytes(), [copy(c) for c in caches]
                runs.append(_Run(ids, kept, position.at, outs, copies))
        return out

    def _ids_in(self, start: int, stop: int) -> Ids:
        """All that decide which sizes are foreseen in these steps."""
        found = self._ids.get((start, stop))
        if found is None:
            arrays = {
                id(ids): ids
                for step in self._steps[start:stop]
                for ids in (*(s.ids for s in step.shadows if s is not None), step.before)
                if ids is not None
            }
            flat = np.concatenate([np.zeros(0, np.int64), *(a.ravel() for a in arrays.values())])
            found = distinct(flat, int(flat.max(initial=0)) + 1)
            self._ids[start, stop] = found
        return found


def _fill(cache: Any, filled: Any) -> None:
    if isinstance(cache, (dict, set)):
        cache.update(filled)
    else:
        cache.extend(filled)


def _described(tree: Any, held: list[Tensor]) -> Any:
    """The sizes of nested tensors, and which are one; `held` gets them, each once.

    Raises:
        _OpaqueError: there is something else in it.
    """
    kind = type(tree)
    if kind is Tensor or kind is nn.Parameter:
        if not tree.is_meta:
            raise _OpaqueError
        place = next((i for i, x in enumerate(held) if x is tree), len(held))
        if place == len(held):
            held.append(tree)
        return Tensor, place, tuple(tree.shape), tree.stride(), tree.dtype
    if isinstance(tree, PLAIN):
        return kind, tree
    if kind is dict:
        return kind, tuple((key, _described(x, held)) for key, x in tree.items())
    if kind in (tuple, list, torch.Size):
        return kind, tuple([_described(x, held) for x in tree])
    raise _OpaqueError


def _made(described: Any, held: list[Tensor]) -> Any:
    """Tensors of these sizes; those in `held` are taken from there."""
    kind, what = described[:2]
    if kind is Tensor:
        if what == len(held):
            _, _, shape, strides, dtype = described
            held.append(torch.empty_strided(shape, strides, dtype=dtype, device=META))
        return held[what]
    if kind is dict:
        return {key: _made(x, held) for key, x in what}
    if kind in (tuple, list, torch.Size):
        return kind(_made(x, held) for x in what)
    return what
