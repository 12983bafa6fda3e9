"""Which layers produce and consume the channels of a group; which groups have one of each."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from pipeline.units.groups import ChannelGroup, Slice

GroupScope = Literal["inner", "all"]
"""Which prunable groups a method treats: "inner" (one producer, one consumer) or all."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def owner(piece: Slice) -> str:
    """Name of the module that holds the tensor of a slice."""
    return piece.tensor.rpartition(".")[0]


def is_depthwise(module: nn.Module) -> bool:
    """One filter per input channel: it passes channels on and does not mix them."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels


def layers_of(group: ChannelGroup, model: nn.Module, role: str) -> tuple[str, ...]:
    """Names of the layers that have `role` in `group`, in forward order; depthwise convolutions
    only follow their input and count only where a group has nothing else."""
    names = tuple(dict.fromkeys(owner(s) for s in group.slices if s.role == role))
    mixing = tuple(n for n in names if not is_depthwise(model.get_submodule(n)))
    return mixing or names


def is_inner(group: ChannelGroup, model: nn.Module) -> bool:
    """True when one layer makes the channels and one layer reads them."""
    producers = layers_of(group, model, "producer")
    return len(producers) == 1 and len(layers_of(group, model, "consumer")) == 1


def in_scope(
    groups: Sequence[ChannelGroup], model: nn.Module, scope: GroupScope, skip: Sequence[str] = ()
) -> tuple[ChannelGroup, ...]:
    """Groups selected by `scope`, minus those produced by a layer matching a `skip` pattern."""

    def skipped(group: ChannelGroup) -> bool:
        names = layers_of(group, model, "producer") or tuple(owner(s) for s in group.slices)
        return any(fnmatchcase(name, pattern) for name in names for pattern in skip)

    chosen = (g for g in groups if scope == "all" or is_inner(g, model))
    return tuple(g for g in chosen if not skipped(g))
