"""Proof by trial that a layer computes the same with experts masked and with experts cut out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from pipeline.units.experts.routers import WatchTopK, mask_router, unmask
from pipeline.units.modules import drop_entries, own_shapes, set_size, sizes

TOLERANCE = 1e-3
"""Of the outputs, relative; coarser types of number get 32 times their eps."""

Layers = Mapping[str, nn.Module]
Called = tuple[tuple[Any, ...], dict[str, Any]]


def join(path: str, key: str) -> str:
    """Name of a part of a module."""
    return f"{path}.{key}" if path else key


def below(path: str, block: str) -> bool:
    """Is it the module `block` or a part of it?"""
    return not block or path == block or path.startswith(f"{block}.")


@dataclass(frozen=True)
class Candidate:
    """A layer that may be a mixture of experts.

    Attributes:
        block: path of the module that is run; it holds router and experts.
        experts: path of the module, or list of modules, with an entry per expert.
        listed: experts are the modules of a list.
        size: number of experts.
        router: names of tensors with a row or entry per expert, the matrix first.
        stacked: names of the tensors that hold all experts, one per position of dimension 0.
    """

    block: str
    experts: str
    listed: bool
    size: int
    router: tuple[str, ...]
    stacked: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the group."""
        return f"{self.experts} (experts)"


@dataclass(frozen=True)
class Proof:
    """What a trial found: attributes (module below the block, name) that hold the number of
    experts, and how many must stay; or the reason why these are no units."""

    attributes: tuple[tuple[str, str], ...] = ()
    least: int = 1
    reason: str = ""
    routed: bool = False


class Trial:
    """One layer, without some of its experts: masked and cut."""

    def __init__(self, c: Candidate, layers: Layers, called: Called) -> None:
        self.c, self.layers = c, layers
        self.block = layers[c.block]
        self.generator = torch.Generator().manual_seed(0)
        self.inputs = pytree.tree_map_only(Tensor, self._random, called)
        weight = self._tensor(c.router[0])
        self.numbers = {
            name: torch.randn(x.shape, generator=self.generator).to(x) for name, x in self._rows()
        }
        self.numbers[c.router[0]] = self.numbers[c.router[0]] / weight.shape[1] ** 0.5
        self.tolerance = max(TOLERANCE, 32 * torch.finfo(weight.dtype).eps)

    def _random(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            if x.is_meta:
                raise ValueError("it takes an input that is no number of floating point")
            return x
        device = next(self.block.parameters()).device
        return torch.randn(x.shape, generator=self.generator).to(device, x.dtype)

    def _tensor(self, name: str) -> Tensor:
        path, _, key = name.rpartition(".")
        module = self.layers[path]
        own = {**module._parameters, **module._buffers}
        return own[key]  # type: ignore[return-value]

    def _rows(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.c.router:
            if (x := self._tensor(name)).is_floating_point():
                yield name, x

    def proof(self) -> Proof:
        with self._holding(self.numbers):
            watch = WatchTopK(self.c.size)
            with watch:
                dense = self._run()
            least = max(1, watch.most)
            if least >= self.c.size:
                return Proof(least=least)
            if _difference(dense, self._masked(self._subsets(least)[-1])) < self.tolerance:
                return Proof(reason="experts do not show in the layer's outputs")
            for chosen in self._attributes():
                if all(self._agrees(keep, chosen) for keep in self._subsets(least)):
                    return Proof(chosen, least, routed=self._routed(least, chosen))
        return Proof(reason="the layer computes something else with fewer experts")

    def _subsets(self, least: int) -> list[Tensor]:
        """All but the first, about half, as few as the router allows."""
        half = max(least, self.c.size // 2)
        found = [torch.arange(self.c.size) > 0]
        for kept in (half, least):
            keep = torch.zeros(self.c.size, dtype=torch.bool)
            keep[torch.randperm(self.c.size, generator=self.generator)[:kept]] = True
            found.append(keep)
        return found

    def _attributes(self) -> list[tuple[tuple[str, str], ...]]:
        """Ways to tell the layer's code the number of experts: attributes equal to it, those that
        speak of experts first; none."""
        start = len(self.c.block) + 1 if self.c.block else 0
        equal = tuple(
            (path[start:], name)
            for path, module in self.layers.items()
            if below(path, self.c.block)
            if not type(module).__module__.startswith("torch.nn")
            for name, value in vars(module).items()
            if type(value) is int and value == self.c.size
        )
        named = tuple(entry for entry in equal if "expert" in entry[1])
        return list(dict.fromkeys((named, equal, ())))

    def _agrees(self, keep: Tensor, chosen: tuple[tuple[str, str], ...]) -> bool:
        want = self._masked(keep)
        try:
            with self._cut(keep, chosen):
                found = self._run()
        except Exception:  # the code insists on all experts
            return False
        return _difference(want, found, keep) < self.tolerance

    def _routed(self, least: int, chosen: tuple[tuple[str, str], ...]) -> bool:
        """Do as many experts run as before? Then only the router's rows save anything."""
        keep = self._subsets(least)[1]
        with FlopCounterMode(display=False) as whole:
            self._run()
        with self._cut(keep, chosen), FlopCounterMode(display=False) as cut:
            self._run()
        inputs = [x for x in pytree.tree_leaves(self.inputs) if isinstance(x, Tensor)]
        rows = 2 * max(x.numel() for x in inputs) * int((~keep).sum())  # of the router's product
        return whole.get_total_flops() - cut.get_total_flops() <= rows

    def _run(self) -> list[Tensor]:
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, self.inputs)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out = self.block(*args, **kwargs)
        return [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor)]

    def _masked(self, keep: Tensor) -> list[Tensor]:
        router = self.layers[self.c.router[0].rpartition(".")[0]]
        below = {path: m for path, m in self.layers.items() if m is router}
        mask_router(_At(below), self.c.router, keep)  # type: ignore[arg-type]
        try:
            return self._run()
        finally:
            unmask(router)

    @contextmanager
    def _holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """These tensors in place of the layer's own, sizes of torch's layers included."""
        undo: list[tuple[Any, str, Any]] = []
        try:
            for name, x in tensors.items():
                path, _, key = name.rpartition(".")
                layer = self.layers[path]
                store = layer._parameters if key in layer._parameters else layer._buffers
                undo.append((store, key, store[key]))
                is_parameter = store is layer._parameters
                store[key] = nn.Parameter(x, False) if is_parameter else x  # type: ignore[assignment]
                for attribute, value in sizes(layer, own_shapes(layer)).items():
                    undo.append((layer.__dict__, attribute, getattr(layer, attribute)))
                    setattr(layer, attribute, value)
            yield
        finally:
            for where, key, value in reversed(undo):
                where[key] = value

    @contextmanager
    def _cut(self, keep: Tensor, chosen: tuple[tuple[str, str], ...]) -> Iterator[None]:
        kept = torch.nonzero(keep)[:, 0]
        names = (*self.c.router, *self.c.stacked)
        tensors = {n: x.detach()[kept.to(x.device)] for n in names for x in (self._tensor(n),)}
        experts, before = self.layers[self.c.experts], dict(self.layers[self.c.experts]._modules)
        attributes = [(self.layers[self._below(path)], name) for path, name in chosen]
        try:
            with self._holding(tensors):
                for module, name in attributes:
                    set_size(module, name, len(kept))
                if self.c.listed:
                    drop_entries(experts, keep)
                yield
        finally:
            for module, name in attributes:
                set_size(module, name, self.c.size)
            experts._modules.clear()
            experts._modules.update(before)

    def _below(self, path: str) -> str:
        return join(self.c.block, path) if path else self.c.block


class _At:
    """`get_submodule` of modules known by path."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def get_submodule(self, path: str) -> nn.Module:
        return self.layers[path]


def _difference(want: list[Tensor], found: list[Tensor], keep: Tensor | None = None) -> float:
    """Relative; outputs with an entry per expert are compared where experts are kept."""
    if len(want) != len(found):
        return float("inf")
    worst, compared = 0.0, 0
    for a, b in zip(want, found, strict=True):
        if not a.is_floating_point():
            continue
        if a.shape != b.shape and keep is not None and a.shape[-1:] == keep.shape:
            a = a[..., keep.to(a.device)]
        if a.shape != b.shape:
            return float("inf")
        if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
            if keep is None:
                continue
            return float("inf")
        scale = float(a.abs().max().clamp_min(1e-30)) if a.numel() else 1.0
        worst = max(worst, float((a - b).abs().max()) / scale if a.numel() else 0.0)
        compared += 1
    return worst if compared else float("inf")
