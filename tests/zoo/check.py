"""Trace a network, cut half of every group, compare with the masked network in float64."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.units.enforce import enforce
from pipeline.units.groups import Units
from pipeline.units.heads import with_open_heads
from pipeline.units.rms_norms import AllDouble
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from pipeline.units.trace.calls import tensors_in
from tests.pipeline.units.laws import _cast, outputs, random_plan, randomise_bn, relative
from tests.zoo.networks import Network

TOLERANCE = 1e-7
"""Relative, in float64: of deep random networks outputs may cancel."""


@dataclass(frozen=True)
class Row:
    """What the table says of one network.

    Attributes:
        difference: between masked and shrunk outputs, relative; None if one did not run.
        share: part of the parameters that stands in prunable groups.
        reason: of the largest group that stays, or what failed.
    """

    name: str
    traced: bool
    difference: float | None
    share: float
    reason: str

    @property
    def exact(self) -> bool:
        return self.difference is not None and self.difference <= TOLERANCE


def measure(network: Network) -> Row:
    """Never raises: a failure is a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model = with_open_heads(network.build().eval())
            units = trace_units(model, network.example())
        except Exception as error:
            return Row(network.id, False, None, 0.0, _words(error))
        share, reason = _share(model, units)
        try:
            return Row(network.id, True, _difference(model, network, units), share, reason)
        except Exception as error:
            return Row(network.id, True, None, share, _words(error))


def _difference(model: nn.Module, network: Network, units: Units) -> float:
    masked = randomise_bn(model, torch.Generator().manual_seed(1)).double()
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    shrunk = copy.deepcopy(masked)
    enforce(plan, masked, units)
    shrink(plan, shrunk, units)
    example = _cast(network.example(), torch.float64)
    with AllDouble():
        return relative(_seen(masked, example), _seen(shrunk, example))


def _seen(model: nn.Module, example: Any) -> list[Tensor]:
    """All outputs; of a detector with one head what the head returns, since rounding decides the
    order of boxes with equal scores."""
    if not (hasattr(model, "postprocess_detections") and hasattr(model, "head")):
        return outputs(model, example)
    seen: list[Tensor] = []
    handle = model.head.register_forward_hook(
        lambda _module, _inputs, out: seen.extend(tensors_in(out))
    )
    try:
        outputs(model, example)
    finally:
        handle.remove()
    return seen


def _share(model: nn.Module, units: Units) -> tuple[float, str]:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    held = {s.tensor for g in units.prunable for s in g.slices}
    kept: Counter[str] = Counter()
    for group in units.groups:
        if not group.prunable and "network's output" not in group.reason:
            kept[group.reason] += sum(sizes.get(s.tensor, 0) for s in group.slices)
    inside = sum(n for name, n in sizes.items() if name in held)
    reason = max(kept, key=lambda r: kept[r]) if kept else ""
    return inside / max(1, sum(sizes.values())), reason


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]
