"""Describe every channel group: its layers, parameters and MACs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pipeline.measure.count import MacsModel
from pipeline.units.groups import ChannelGroup, Granularity, Kind, Role, Units, layer_of
from pipeline.units.plan import PruningPlan


@dataclass(frozen=True)
class Part:
    """A layer's part in a group: `width` positions of its tensor belong to one channel."""

    layer: str
    width: int

    def __str__(self) -> str:
        return self.layer if self.width == 1 else f"{self.layer} ({self.width} positions each)"


@dataclass(frozen=True)
class GroupRow:
    """One channel group.

    Attributes:
        reason: why it is not prunable; empty when it is.
        producers, norms, consumers: the layers that compute, scale and read its channels.
        feeds: names of the groups that its consumers produce.
        members: what goes with an expert: router and experts.
        kind: of the unit: "channel", "expert", "branch".
        channel_params, channel_macs: saved by removing its first channel alone.
        group_params, group_macs: saved by removing all its channels and no others. Groups share
            layers (one produces what the next reads), so these do not add up to the network.
    """

    name: str
    size: int
    prunable: bool
    reason: str
    producers: tuple[Part, ...]
    norms: tuple[Part, ...]
    consumers: tuple[Part, ...]
    feeds: tuple[str, ...]
    channel_params: int
    channel_macs: int
    group_params: int
    group_macs: int
    members: tuple[Part, ...] = ()
    kind: Kind = "channel"


@dataclass(frozen=True)
class Description:
    """A network's groups in forward order; `loose`: layers with parameters and no group."""

    params: int
    macs: int
    rows: tuple[GroupRow, ...]
    loose: tuple[str, ...]

    @property
    def channels(self) -> int:
        return sum(row.size for row in self.rows if row.kind == "channel")

    @property
    def prunable_channels(self) -> int:
        return sum(row.size for row in self.rows if row.prunable and row.kind == "channel")

    @property
    def others(self) -> tuple[str, ...]:
        """How many units that are no channels can go: "12 of 16 experts"."""
        plural = {"expert": "experts", "branch": "branches"}
        found: dict[str, list[int]] = {}
        for row in self.rows:
            if row.kind != "channel":
                can, all_of_them = found.setdefault(row.kind, [0, 0])
                found[row.kind] = [can + row.size * row.prunable, all_of_them + row.size]
        return tuple(f"{can} of {total} {plural[kind]}" for kind, (can, total) in found.items())


def describe(model: nn.Module, example: Any, units: Units) -> Description:
    """Every group of `units`; unprunable ones get the cost they would have if they were prunable.

    Args:
        example: what `units` was traced with; MACs are those of one forward of it.
    """
    priced = tuple(g if g.prunable else replace(g, prunable=True, least=0) for g in units.groups)
    costs = MacsModel(model, example, replace(units, groups=priced))
    dense = _cost(costs, {})
    makers = _makers(units)
    rows = tuple(_row(group, costs, dense, makers) for group in units.groups)
    return Description(*dense, rows, _loose(model, units))


def _row(
    group: ChannelGroup, costs: MacsModel, dense: tuple[int, int], makers: dict[str, list[str]]
) -> GroupRow:
    one = torch.ones(group.size, dtype=torch.bool)
    one[:1] = False
    channel = _cost(costs, {group.name: one})
    least = group.least if group.prunable else 0
    whole = _cost(costs, {group.name: torch.arange(group.size) < least})
    consumers = _parts(group, "consumer")
    fed = [name for part in consumers for name in makers.get(part.layer, ())]
    return GroupRow(
        group.name,
        group.size,
        group.prunable,
        group.reason,
        _parts(group, "producer"),
        _parts(group, "norm"),
        consumers,
        tuple(name for name in dict.fromkeys(fed) if name != group.name),
        dense[0] - channel[0],
        dense[1] - channel[1],
        dense[0] - whole[0],
        dense[1] - whole[1],
        _members(group),
        group.kind,
    )


def _cost(costs: MacsModel, keep: dict[str, torch.Tensor]) -> tuple[int, int]:
    plan = PruningPlan(Granularity.STRUCTURED, keep)
    return costs.params(plan), costs.macs(plan)


def _parts(group: ChannelGroup, role: Role) -> tuple[Part, ...]:
    widths: dict[str, int] = {}
    for s in group.slices:
        if s.role == role:
            layer = layer_of(s.tensor)
            widths[layer] = max(widths.get(layer, 1), s.index.shape[1])
    return tuple(Part(layer, width) for layer, width in widths.items())


def _members(group: ChannelGroup) -> tuple[Part, ...]:
    listed = tuple(Part(path, 1) for path in group.lists)
    return tuple(dict.fromkeys(_parts(group, "router") + _parts(group, "member") + listed))


def _makers(units: Units) -> dict[str, list[str]]:
    """Layer -> the groups it produces."""
    makers: dict[str, list[str]] = {}
    for group in units.groups:
        for part in _parts(group, "producer"):
            makers.setdefault(part.layer, []).append(group.name)
    return makers


def _loose(model: nn.Module, units: Units) -> tuple[str, ...]:
    seen = {layer_of(s.tensor) for group in units.groups for s in group.slices}
    names = [name for name, _ in model.named_parameters()]
    listed = {n for n in names for group in units.groups if group.unit_of(n) is not None}
    layers = dict.fromkeys(layer_of(name) for name in names if name not in listed)
    return tuple(layer for layer in layers if layer not in seen)


def as_text(description: Description) -> Iterator[str]:
    """Lines for a terminal: the totals, then group by group."""
    d = description
    can = sum(row.prunable for row in d.rows)
    yield (
        f"{d.params:,} parameters, {d.macs:,} MACs; {can} of {len(d.rows)} channel groups prunable,"
        f" {', '.join((f'{d.prunable_channels:,} of {d.channels:,} channels', *d.others))}"
    )
    for row in d.rows:
        yield ""
        yield f"{row.name} [{row.size}]" + ("" if row.prunable else f"  not prunable: {row.reason}")
        yield f"  one {row.kind:8s} {row.channel_params:,} parameters, {row.channel_macs:,} MACs"
        yield (
            f"  all of them  {row.group_params:,} parameters ({_share(row.group_params, d.params)})"
            f", {row.group_macs:,} MACs ({_share(row.group_macs, d.macs)})"
        )
        yield from _listed("made by", row.producers)
        yield from _listed("scaled by", row.norms)
        yield from _listed("read by", row.consumers)
        yield from _listed("members", row.members)
    if d.loose:
        yield ""
        yield from _listed("in no group", d.loose)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def _listed(title: str, parts: Iterable[Part | str]) -> Iterator[str]:
    if names := ", ".join(str(part) for part in parts):
        yield f"  {title:11s}  {names}"
