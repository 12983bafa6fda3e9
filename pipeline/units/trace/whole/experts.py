"""Experts among the groups of a trace: in place of the rows of their routers."""

from __future__ import annotations

import numpy as np

from pipeline.units.experts.find import expert_groups
from pipeline.units.experts.trial import Candidate, below
from pipeline.units.groups import ChannelGroup, SizeAttribute, layer_of
from pipeline.units.trace.forward import Forward
from pipeline.units.trace.grouping import Grouping
from pipeline.units.trace.shadow import FIXED
from pipeline.units.trace.tracer import OUTPUT, Tracer


def with_experts(
    forward: Forward, tracer: Tracer, grouping: Grouping, never_prune: tuple[str, ...]
) -> tuple[tuple[ChannelGroup, ...], list[SizeAttribute]]:
    """All groups, experts in place of the rows of their routers, which alone could not go; and the
    attributes that follow the number of experts."""
    groups = grouping.groups
    if not tracer.experts:
        return groups, []
    assert tracer.calls is not None
    refused = {
        c.name: why for c in tracer.experts if (why := _refused(c, tracer, grouping, never_prune))
    }
    with forward.evaluating():
        found, attributes = expert_groups(forward.layers, tracer.experts, tracer.calls, refused)
    for experts in found:
        own = {s.tensor for s in experts.slices}
        rows = [g for g in groups if not g.prunable and {s.tensor for s in g.slices} <= own]
        at = groups.index(rows[0]) if rows else len(groups)
        groups = (*groups[:at], experts, *(g for g in groups[at:] if g not in rows))
    return groups, attributes


def _refused(c: Candidate, tracer: Tracer, grouping: Grouping, never_prune: tuple[str, ...]) -> str:
    """Why the logits of these experts must stay, whatever the layer itself allows."""
    own = {*c.router, *c.stacked}
    if named := [path for path in never_prune if path in (layer_of(c.router[0]), c.experts)]:
        return f"never_prune names {named[0]}"
    outside = [
        path
        for name in own
        for path in tracer.read_elsewhere.get(name, ())
        if not below(path, c.block)
    ]
    if outside:
        return f"its weights are read elsewhere ({outside[0] or 'the network'})"
    used = tracer.book.uses.get((c.router[0], 0))
    ids = grouping.labels[used.ids[used.ids > FIXED]] if used is not None else ()
    for pinned, code in tracer.book.pins:
        if tracer.book.reasons[code] == OUTPUT and np.isin(grouping.labels[pinned], ids).any():
            return OUTPUT
    rows = [
        g for g in grouping.groups if any(s.tensor == c.router[0] and s.dim == 0 for s in g.slices)
    ]
    others = {s.tensor for g in rows for s in g.slices} - own
    return f"its logits are read elsewhere ({min(others)})" if others else ""
