"""What can be pruned: names of prunable weights, and groups of channels that are coupled.

Plain data. Tensors are named by their `state_dict` key, so groups stay valid for copies of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from pipeline.units.leftovers.formula import Leftover

Role = Literal["producer", "norm", "consumer", "router", "member"]
Kind = Literal["channel", "expert", "branch"]


def layer_of(tensor: str) -> str:
    """Path of the layer that owns a tensor, parametrized or not.

    A parameter of the root module keeps its own name.
    """
    owner = tensor.rpartition(".")[0]
    return owner.partition(".parametrizations.")[0] or tensor


class Granularity(StrEnum):
    """What one unit is: a single weight, or one channel of a channel group."""

    UNSTRUCTURED = "unstructured"
    STRUCTURED = "structured"


@dataclass(frozen=True, eq=False)
class Slice:
    """One dimension of one tensor that carries the channels of a group.

    Attributes:
        tensor: `state_dict` key of a parameter or buffer.
        dim: the dimension of that tensor that is indexed by `index`.
        role: "producer" computes the channel, "norm" scales and shifts it (BatchNorm and kin,
            running statistics included), "consumer" reads it; "router" and "member" go with an
            expert: its logit, and the rest of it.
        index: int64, shape (size, k): `index[i]` are the k positions along `dim` that belong to
            channel i. k = 1 for a plain convolution, h*w behind a flatten, the number of
            convolution groups in a grouped convolution.
    """

    tensor: str
    dim: int
    role: Role
    index: Tensor

    @cached_property
    def plain(self) -> bool:
        """True when channel i is position i, so `index` need not be applied."""
        size, k = self.index.shape
        return k == 1 and torch.equal(
            self.index[:, 0], torch.arange(size, device=self.index.device)
        )


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels coupled by the architecture: channel i of every slice is kept or removed together.

    Attributes:
        name: unique within a model, taken from its first producer.
        size: number of channels, the length of the masks of this group.
        slices: everything that surgery must cut.
        prunable: False when removing a channel cannot be done exactly; `reason` says why, in words.
        kind: "channel", or "expert" of a mixture: masked by its router (`pipeline.units.routers`),
            not by zeros, so that no method that brings channels to zero treats it; or "branch": all
            that is added to one residual stream in one place, a single unit whose producer is the
            last layer and whose consumers are all others.
        least: how many must stay (the router picks that many).
        routed: an example runs as many experts as before, so that MACs stay where experts go.
        lists: paths of module lists whose entry i is expert i.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    prunable: bool = True
    reason: str = ""
    kind: Kind = "channel"
    least: int = 0
    routed: bool = False
    lists: tuple[str, ...] = ()

    @property
    def zig(self) -> tuple[Slice, ...]:
        """Zero-invariant part: producers and norms. Removing it changes nothing when it is zero."""
        return tuple(s for s in self.slices if s.role in ("producer", "norm"))

    def unit_of(self, tensor: str) -> int | None:
        """The expert whose module, an entry of `lists`, holds this tensor."""
        for path in self.lists:
            if tensor.startswith(f"{path}."):
                return int(tensor[len(path) + 1 :].partition(".")[0])
        return None

    def __str__(self) -> str:
        parts = [f"{s.tensor}[{s.dim}]" for s in self.slices]
        tail = "" if self.prunable else f"  (not prunable: {self.reason})"
        return f"{self.name} [{self.size}]: {' => '.join(parts)}{tail}"


@dataclass(frozen=True)
class Share:
    """How many positions of one dimension each unit of the given groups owns.

    Attributes:
        size: positions of the dimension in the dense model.
        per_unit: group name -> positions of one of its units.
    """

    size: int
    per_unit: Mapping[str, int]

    def left(self, removed: Mapping[str, int]) -> int:
        """Positions left after removing that many units of every group."""
        return self.size - sum(removed.get(group, 0) * k for group, k in self.per_unit.items())


@dataclass(frozen=True)
class SizeAttribute:
    """A size attribute of a module that shrinks with the tensors (heads, split sizes).

    `name` may be one entry of a list: "splits[1]".
    """

    module: str
    name: str
    share: Share


@dataclass(frozen=True)
class NormKind:
    """Names of an RMS norm's weight and eps; `offset` is 1 where it multiplies by 1 + w; `dim` is
    that of its channels, the last (-1) or, for images, 1; `power` of the ratio of widths that its
    weight grows with, 1 for a global response normalisation."""

    weight: str
    eps: str
    offset: float
    dim: int = -1
    power: float = 0.5


@dataclass(frozen=True)
class NormScale:
    """An RMS norm whose weight and eps grow when channels go (see `pipeline.units.rms_norms`)."""

    module: str
    kind: NormKind
    share: Share


@dataclass(frozen=True)
class Units:
    """Everything of one model that a method may prune.

    Attributes:
        weights: names of the weights of convolution and linear layers, in `state_dict` order: the
            unstructured units are their entries.
        groups: channel groups, in forward order, the unprunable ones included.
        attributes: numbers that surgery must change together with the tensors.
        products: number of a matrix product in the forward -> the dimensions that shrink, where
            both factors are activations (attention).
        read_elsewhere: tensors that other code than the layer's own forward reads; surgery cuts
            them but never replaces their layer.
        norms: RMS norms that surgery scales to their new width.
        leftovers: constants that removed channels leave, for the biases of the layers behind them.
    """

    weights: tuple[str, ...]
    groups: tuple[ChannelGroup, ...]
    attributes: tuple[SizeAttribute, ...] = ()
    products: Mapping[int, tuple[Share, ...]] = field(default_factory=dict)
    read_elsewhere: frozenset[str] = frozenset()
    norms: tuple[NormScale, ...] = ()
    leftovers: tuple[Leftover, ...] = ()

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        return tuple(g for g in self.groups if g.prunable)

    @property
    def channels(self) -> tuple[ChannelGroup, ...]:
        """The prunable groups whose units methods train: neither experts nor branches."""
        return tuple(g for g in self.groups if g.prunable and g.kind == "channel")

    def by_name(self) -> Mapping[str, ChannelGroup]:
        return {g.name: g for g in self.groups}
