"""Whole experts as units: a router's row together with everything that belongs to its expert.

Experts are found by shape (tensors, or modules of a list, one per expert, and a matrix with a row
per expert that runs before them) and proved by trial: the layer is run on random numbers without
some of its experts, once with their logits at minus infinity and once with them cut out. Only if
both agree, for several choices of experts, are they units. No name of a class decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.units.experts.trial import Called, Candidate, Layers, Proof, Trial, below, join
from pipeline.units.groups import ChannelGroup, Share, SizeAttribute, Slice

LEVELS = 2
"""A router is looked for in the module that holds the experts and in the one around it."""


def expert_candidates(layers: Layers) -> list[Candidate]:
    """By shape alone."""
    found = []
    for path, module in layers.items():
        size, stacked = _experts_in(path, module)
        if size > 1 and (home := _home(path, size, layers)) is not None:
            block, router = home
            listed = isinstance(module, nn.ModuleList)
            found.append(Candidate(block, path, listed, size, router, stacked))
    return found


def _experts_in(path: str, module: nn.Module) -> tuple[int, tuple[str, ...]]:
    """Number of experts a module may hold, and its tensors with a position per expert."""
    if isinstance(module, nn.ModuleList):
        kinds = {(type(m), _shapes(m)) for m in module._modules.values() if m is not None}
        alike = len(kinds) == 1 and len(kinds.pop()[1]) > 0 and len(set(module)) == len(module)
        return (len(module) if alike else 0), ()
    own = {k: p for k, p in module._parameters.items() if p is not None}
    sizes = {p.shape[0] for p in own.values() if p.ndim == 3}
    if type(module).__module__.startswith("torch.") or len(sizes) != 1:
        return 0, ()
    size = sizes.pop()
    return size, tuple(join(path, k) for k, p in own.items() if p.ndim and p.shape[0] == size)


def _shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _home(path: str, size: int, layers: Layers) -> tuple[str, tuple[str, ...]] | None:
    """The nearest module around the experts (that of stacked experts itself first) that also holds
    a matrix with a row for each, and the tensors of the matrix's own module with an entry for
    each."""
    listed = isinstance(layers[path], nn.ModuleList)
    around = [path]
    while around[-1] and len(around) <= LEVELS:
        around.append(around[-1].rpartition(".")[0])
    for block in around[1:] if listed else around:
        for other, module in layers.items():
            inside = other.startswith(f"{path}." if path else "") and block != path
            if not below(other, block) or inside or (other == path and block != path):
                continue
            own = {**module._parameters, **module._buffers}
            rows = {k: x for k, x in own.items() if x is not None and x.ndim and len(x) == size}
            matrices = [k for k, x in rows.items() if x.ndim == 2]
            if len(matrices) == 1:
                order = sorted(
                    (k for k in rows if rows[k].ndim < 3), key=lambda k: k not in matrices
                )
                return block, tuple(join(other, k) for k in order)
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
    layers: Layers, found: Sequence[Candidate], calls: Calls
) -> tuple[list[ChannelGroup], list[SizeAttribute]]:
    """A group per candidate, with a reason where the trial failed; the model must be in evaluation
    mode and is left as it was. Layers alike are tried once."""
    groups, attributes = [], []
    tried: dict[Any, Proof] = {}
    for c in found:
        if not calls.in_order(c):
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
