"""Whole experts as units: a router's row together with everything that belongs to its expert.

Experts are found by shape (tensors, or modules of a list, one per expert, and a matrix with a row
per expert that runs before them) and proved by trial: the layer is run on random numbers without
some of its experts, once with their logits at minus infinity and once with them cut out. Only if
both agree, for several choices of experts, are they units. No name of a class decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.units.experts.trial import Called, Candidate, Layers, Proof, Trial, below, join
from pipeline.units.groups import ChannelGroup, Share, SizeAttribute, Slice

LEVELS = 2
"""A router is looked for in the module that holds the experts and in the one around it."""


Routers = Mapping[int, Sequence[tuple[str, tuple[str, ...]]]]
"""Number of rows -> modules with one such matrix, and their tensors with as many entries."""


def expert_candidates(layers: Layers) -> list[Candidate]:
    """By shape alone."""
    found = []
    sizes = {path: n for path, module in layers.items() if (n := _experts_in(module)) > 1}
    routers = _routers(layers) if sizes else {}
    for path, size in sizes.items():
        module = layers[path]
        home = _home(path, routers.get(size, ()), module)
        if home is not None and _alike(module):
            block, router = home
            listed = isinstance(module, nn.ModuleList)
            stacked = () if listed else _stacked(path, module, size)
            found.append(Candidate(block, path, listed, size, router, stacked))
    return found


def _experts_in(module: nn.Module) -> int:
    """How many experts it would hold."""
    if isinstance(module, nn.ModuleList):
        return len(module)
    if not module._parameters or type(module).__module__.startswith("torch."):
        return 0
    sizes = {p.shape[0] for p in module._parameters.values() if p is not None and p.ndim == 3}
    return sizes.pop() if len(sizes) == 1 else 0


def _alike(module: nn.Module) -> bool:
    """Are the entries of a list distinct modules of one class, with parameters of equal shapes?"""
    if not isinstance(module, nn.ModuleList):
        return True
    kinds = {(type(m), _shapes(m)) for m in module}
    return len(kinds) == 1 and len(kinds.pop()[1]) > 0 and len(set(module)) == len(module)


def _stacked(path: str, module: nn.Module, size: int) -> tuple[str, ...]:
    own = {k: p for k, p in module._parameters.items() if p is not None and p.ndim}
    return tuple(join(path, k) for k, p in own.items() if len(p) == size)


def _shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _routers(layers: Layers) -> Routers:
    found: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
    for path, module in layers.items():
        own = {**module._parameters, **module._buffers}
        flat = {k: x for k, x in own.items() if x is not None and 0 < x.ndim < 3}
        matrices = [k for k, x in flat.items() if x.ndim == 2]
        for key in matrices:
            size = len(flat[key])
            if sum(len(flat[k]) == size for k in matrices) == 1:
                rows = sorted((k for k in flat if len(flat[k]) == size), key=lambda k: k != key)
                found.setdefault(size, []).append((path, tuple(join(path, k) for k in rows)))
    return found


def _home(
    path: str, routers: Sequence[tuple[str, tuple[str, ...]]], module: nn.Module
) -> tuple[str, tuple[str, ...]] | None:
    """The nearest module around the experts (that of stacked experts itself first) that also holds
    a router: a matrix with a row for each; and the router's tensors."""
    around = [path]
    while around[-1] and len(around) <= LEVELS:
        around.append(around[-1].rpartition(".")[0])
    for block in around[1:] if isinstance(module, nn.ModuleList) else around:
        for other, tensors in routers:
            inside = below(other, path) and block != path
            if below(other, block) and not inside:
                return block, tensors
    return None


class Calls:
    """What the blocks of candidates were called with, and in which order modules first ran."""

    def __init__(self, layers: Layers, found: Sequence[Candidate]) -> None:
        self.layers = layers
        self.inputs: dict[str, Called] = {}
        self.order: dict[str, int] = {}
        self.blocks = {c.block for c in found}
        watched = {c.router[0].rpartition(".")[0] for c in found} | self.blocks
        for c in found:
            watched |= {join(c.experts, key) for key in layers[c.experts]._modules}
            watched.add(c.experts)
        self.watched = watched & layers.keys()

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for path in self.watched:

                def seen(_m: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                    self.order.setdefault(path, len(self.order))
                    if path in self.blocks:
                        self.inputs.setdefault(path, (args, kwargs))

                hook = self.layers[path].register_forward_pre_hook(seen, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def in_order(self, c: Candidate) -> bool:
        """Did the router run before the experts, in a block that was called?"""
        router = self.order.get(c.router[0].rpartition(".")[0])
        if c.block == c.experts:
            return c.block in self.inputs and router is not None
        first = [n for path, n in self.order.items() if path.startswith(f"{c.experts}.")]
        first += [self.order[c.experts]] if c.experts in self.order else []
        return c.block in self.inputs and router is not None and router < min(first, default=1e9)


def expert_groups(
    layers: Layers, found: Sequence[Candidate], calls: Calls, refused: Mapping[str, str]
) -> tuple[list[ChannelGroup], list[SizeAttribute]]:
    """A group per candidate, with a reason where the trial failed; the model must be in evaluation
    mode and is left as it was. Layers alike are tried once; `refused`: names of candidates that are
    not tried, with the reason."""
    groups, attributes = [], []
    tried: dict[Any, Proof] = {}
    for c in found:
        if not calls.in_order(c):
            continue
        if c.name in refused:
            groups.append(_group(c, Proof(reason=refused[c.name])))
            continue
        key = _kind(c, layers)
        if key not in tried:
            tried[key] = _proof(c, layers, calls.inputs[c.block])
        proof = tried[key]
        groups.append(_group(c, proof))
        if groups[-1].prunable:
            share = Share(c.size, {c.name: 1})
            attributes += [
                SizeAttribute(join(c.block, path) if path else c.block, name, share)
                for path, name in proof.attributes
            ]
    return groups, attributes


def _kind(c: Candidate, layers: Layers) -> Any:
    numbers = [
        (path[len(c.block) :], type(m), tuple((k, n) for k, n in vars(m).items() if type(n) is int))
        for path, m in layers.items()
        if below(path, c.block)
    ]
    return c.listed, c.size, c.router[0][len(c.block) :], tuple(numbers), _shapes(layers[c.block])


def _group(c: Candidate, proof: Proof) -> ChannelGroup:
    one_each = torch.arange(c.size)[:, None]
    slices = tuple(Slice(name, 0, "router", one_each) for name in c.router)
    slices += tuple(Slice(name, 0, "member", one_each) for name in c.stacked)
    lists = (c.experts,) if c.listed else ()
    reason = proof.reason
    if not reason and proof.least >= c.size:
        reason = f"the router picks {proof.least} of {c.size} experts"
    return ChannelGroup(
        c.name, c.size, slices, not reason, reason, "expert", proof.least, proof.routed, lists
    )


def _proof(c: Candidate, layers: Layers, called: Called) -> Proof:
    if any(p.is_meta for p in layers[c.block].parameters()):
        return Proof(reason="experts are proved on numbers, which a network on meta has not")
    try:
        return Trial(c, layers, called).proof()
    except Exception as error:  # whatever the network's code raises on random numbers
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Proof(reason=f"the layer could not be tried alone: {text}"[:160])
