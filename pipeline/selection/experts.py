"""The weights of whole experts, for scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pipeline.units.groups import ChannelGroup


def expert_tensors(group: ChannelGroup, known: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the parameters in which experts of this group have a part."""
    sliced = {s.tensor for s in group.slices}
    return tuple(n for n in known if n in sliced or group.unit_of(n) is not None)


def expert_rows(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Entries of every expert, router rows included: one (size, entries) per tensor, or per
    parameter of experts that are modules of a list."""
    for piece in group.slices:
        if piece.tensor in tensors:
            yield tensors[piece.tensor].movedim(piece.dim, 0).reshape(group.size, -1)
    parts: dict[str, dict[int, Tensor]] = {}
    for name, x in tensors.items():
        if (unit := group.unit_of(name)) is not None:
            path = next(p for p in group.lists if name.startswith(f"{p}."))
            parts.setdefault(name[len(path) + 1 :].partition(".")[2], {})[unit] = x
    for entries in parts.values():
        yield torch.stack([entries[unit].flatten() for unit in sorted(entries)])


def expert_norms(group: ChannelGroup, tensors: Mapping[str, Tensor], p: int) -> Tensor:
    """p-norm of all weights of every expert; never 0, since an expert of zeros is not absent: its
    router still chooses it."""
    rows = (x.detach().float().abs().pow(p).sum(1) for x in expert_rows(group, tensors))
    total = torch.stack(list(rows)).sum(0).pow(1 / p)
    return total.clamp_min(torch.finfo(total.dtype).tiny)
