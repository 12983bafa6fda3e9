"""Everything a notebook needs to prune a network of its own; `docs/api.md` shows it, executed.

The optimizers that bring channels to zero are in methods/ (`methods.hspg`, `methods.hesso`, ...).
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline.files import load_tree, save_tree
from pipeline.measure.count import MacsModel, count
from pipeline.measure.describe import describe
from pipeline.selection.saliency import group_norm
from pipeline.selection.select import Context, select
from pipeline.selection.target import Target
from pipeline.units.decoder_folder import save_decoder
from pipeline.units.enforce import Enforcer, enforce
from pipeline.units.exports import save_onnx, save_program
from pipeline.units.groups import Granularity, Units
from pipeline.units.heads import with_open_heads
from pipeline.units.plan import PruningPlan
from pipeline.units.rows import Rows, branch_norms, named_parameters, zig_norms
from pipeline.units.surgery import apply_plan, shrink
from pipeline.units.trace import trace_units

__all__ = [
    "Context",
    "Enforcer",
    "Granularity",
    "MacsModel",
    "PruningPlan",
    "Rows",
    "Target",
    "Units",
    "channel_rows",
    "count",
    "describe",
    "enforce",
    "group_norm",
    "load_pruned",
    "save_decoder",
    "save_onnx",
    "save_program",
    "save_pruned",
    "select",
    "shrink",
    "trace_units",
    "with_open_heads",
    "zero_channels",
    "zig_norms",
]


def channel_rows(model: nn.Module, units: Units) -> Rows:
    """The prunable channels of `model` in the form that the optimizers of methods/ take."""
    return Rows(named_parameters(model), units.channels)


def zero_channels(model: nn.Module, units: Units) -> PruningPlan:
    """Remove exactly the channels, and branches (`trace_units(..., branches=True)`), that training
    brought to zero: no output changes."""
    norms = zig_norms(model, units.channels) | branch_norms(model, units)
    return select(norms, Granularity.STRUCTURED, Target(rule="zeros"))


def save_pruned(path: Path | str, plan: PruningPlan, model: nn.Module) -> None:
    """Write the plan and the weights of a network that was shrunk by it: one safetensors file."""
    tree = {"granularity": plan.granularity.value, "keep": dict(plan.keep)}
    save_tree(Path(path), {"plan": tree, "state": dict(model.state_dict())})


def load_pruned(path: Path | str, model: nn.Module, units: Units) -> PruningPlan:
    """Turn a newly built dense network, in place, into the one that was saved.

    Args:
        units: of `model` as it is now, traced as they were when the plan was made.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: not what `save_pruned` wrote.
        ValueError: the plan is of another network.
    """
    tree = load_tree(Path(path))
    plan = PruningPlan(Granularity(tree["plan"]["granularity"]), tree["plan"]["keep"])
    apply_plan(plan, model, units)
    model.load_state_dict(tree["state"])
    return plan
