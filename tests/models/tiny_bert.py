"""A tiny encoder with a span head, and plans for it."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from tests.squad_world import TINY

INFO = DatasetInfo("squad", (3, 32), 2)


def tiny(**args) -> nn.Module:
    torch.manual_seed(0)
    return build_model("bert", "encoder_qa", INFO, {**TINY, **args}).eval()


def spec(**args) -> NetworkSpec:
    return NetworkSpec("bert", "encoder_qa", {**TINY, **args}, INFO)


def half(units, seed: int = 0) -> PruningPlan:
    """Every second unit, at random; the first stays."""
    generator = torch.Generator().manual_seed(seed)
    keep = {g.name: torch.rand(g.size, generator=generator) < 0.5 for g in units.prunable}
    for mask in keep.values():
        mask[0] = True
    return PruningPlan(Granularity.STRUCTURED, keep)


def pruned(plan_of=half, **args) -> tuple[nn.Module, nn.Module]:
    """The masked and the shrunk network."""
    masked, shrunk = tiny(**args), tiny(**args)
    units = spec(**args).units(masked)
    plan = plan_of(units)
    enforce(plan, masked, units)
    shrink(plan, shrunk, units)
    return masked, shrunk.eval()


def all_inner(units) -> PruningPlan:
    """The first layer loses its whole inner part."""
    (first, *_) = [g for g in units.prunable if "intermediate" in g.name]
    gone = torch.zeros(first.size, dtype=torch.bool)
    return PruningPlan(Granularity.STRUCTURED, {first.name: gone})
