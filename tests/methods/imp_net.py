"""The small network of the recorded IMP runs, and rounds without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from methods.imp import IMP, IMPConfig
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.units.groups import Units

TRACE = json.loads((Path(__file__).parent / "data" / "imp_masks.json").read_text())
RECIPE = Recipe(
    epochs=10,
    rewind_epoch=3,
    optimizer=OptimizerConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    schedule=ScheduleConfig(milestones=(5, 8)),
)


def trace_net() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 1), nn.Linear(3, 2))
    with torch.no_grad():
        for number, layer in enumerate(net):
            values = torch.tensor(TRACE["init_weights"][str(number)])
            layer.weight.copy_(values.view_as(layer.weight))
    return net


def units_of(net: nn.Module) -> Units:
    return Units(tuple(n for n, p in net.named_parameters() if p.ndim > 1), ())


def pretend_to_train(net: nn.Module, round_number: int) -> None:
    """Replaces training, as in the trace: a fixed perturbation of every weight alive."""
    with torch.no_grad():
        for layer, module in enumerate(net.children()):
            index = np.arange(module.weight.numel())
            ripple = np.float32(0.15 * np.sin(1.7 * index + 2.1 * round_number + layer))
            module.weight.add_(torch.from_numpy(ripple).view_as(module.weight))


def bits(mask: Tensor) -> str:
    return "".join("1" if b else "0" for b in mask.flatten().tolist())


def started(config: IMPConfig, net: nn.Module) -> IMP:
    method = IMP(config)
    method.prepare(net, units_of(net))
    return method


def apply_plan(method: IMP, net: nn.Module) -> None:
    plan = method.plan()
    with torch.no_grad():
        for name, mask in plan.keep.items() if plan else ():
            net.get_parameter(name).mul_(mask)


Masks = dict[str, Tensor]


def run_rounds(method: IMP, net: nn.Module, reset_to: dict[str, Tensor] | None) -> list[Masks]:
    """Run all phases with this perturbation; return the masks with which each phase trained."""
    seen = []
    for phase in method.phases(RECIPE):
        if method._number(phase) and reset_to is not None:
            net.load_state_dict(reset_to)
        method.optimizer(net, phase, RECIPE)
        apply_plan(method, net)
        seen.append(dict(method.keep))
        pretend_to_train(net, method.round)
        apply_plan(method, net)
        method.end_phase(net, phase)
    return seen
