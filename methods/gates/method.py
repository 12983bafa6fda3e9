"""Channel gates on a network whose weights are never trained.

"Pruning from Scratch", Wang et al., AAAI 2020 (doi:10.1609/AAAI.V34I07.6910, arXiv:1909.12579).
One gate per prunable channel multiplies the output of the normalisation layer, before the
activation. Only the gates are trained: they start at 1, the regulariser
`balance * (mean |gate| - s)^2` pulls their mean towards s, and they are clipped to [0, 1] after
every step. Units: channels of a group. Rule: `macs`. The pruned network is then trained from random
weights.

Deliberate deviations, all listed in docs/methods/gates.md: the weights are frozen (the paper's code
computes their gradients and never uses them), the gates of the last epoch are used (the paper's
checkpoint rule almost never applies), and selection never removes the last channel of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.hooks import RemovableHandle

from pipeline.registry import register_method
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import NonNegative, Positive, Recipe, ScheduleConfig, Strict
from pipeline.training.schedules import EpochSchedule, Schedule
from pipeline.units.frozen import is_frozen_norm
from pipeline.units.groups import ChannelGroup, Granularity, Slice, Units
from pipeline.units.layers import (
    CONVOLUTIONS,
    GroupScope,
    in_scope,
    is_depthwise,
    layers_of,
    owner,
)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


class GatesConfig(Strict):
    """Settings of the search for channel gates.

    Attributes:
        lr: learning rate of Adam, which learns the gates.
        balance: lambda of the paper: weight of the squared distance of the mean gate from its
            target.
        target_gate_mean: s of the paper: the mean over all gates to reach.
        groups: inner gates the channels that one layer produces and one layer reads, hence never a
            residual stream; all gates every prunable group.
        skip: patterns of layer names (`blocks.*.conv3`) whose output is never gated.
        after_depthwise: also gate the norms after depthwise convolutions. Without it, that
            BatchNorm in training mode divides out the gate before the convolution.
    """

    lr: Positive = 0.01
    balance: NonNegative = 0.5
    target_gate_mean: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    groups: GroupScope = "inner"
    skip: tuple[str, ...] = ()
    after_depthwise: bool = False


def gate_places(
    group: ChannelGroup, model: nn.Module, after_depthwise: bool = False
) -> dict[str, Slice]:
    """Layers whose output is multiplied by the gates of `group`, each with its slice of channels.

    Visits the slices in forward order. Every norm is gated, except a norm after a depthwise
    convolution unless `after_depthwise` is set. A producer without a norm after it is gated itself.
    Other layers that scale channels (PReLU, layer scale) are not gated.
    """
    producers = layers_of(group, model, "producer")
    places: dict[str, Slice] = {}
    open_producer: Slice | None = None
    behind_depthwise = False
    for piece in group.slices:
        name, module = owner(piece), model.get_submodule(owner(piece))
        if isinstance(module, NORMS) or is_frozen_norm(module):
            if after_depthwise or not behind_depthwise:
                places.setdefault(name, piece)
            open_producer = None
            continue
        depthwise = is_depthwise(module) and name not in producers
        if piece.role != "producer" and not depthwise:
            continue
        if open_producer is not None and owner(open_producer) != name:
            places[owner(open_producer)] = open_producer
        open_producer = None if depthwise else piece
        behind_depthwise = depthwise
    if open_producer is not None:
        places[owner(open_producer)] = open_producer
    return places


def gated_output(output: Tensor, gate: Tensor, piece: Slice, dim: int) -> Tensor:
    """`output` with the channels of `piece` along `dim` multiplied by their gates."""
    width = output.shape[dim]
    if not (piece.plain and width == gate.numel()):
        positions = piece.index.to(gate.device)
        values = gate.repeat_interleave(positions.shape[1])
        gate = gate.new_ones(width).scatter(0, positions.flatten(), values)
    shape = [1] * output.ndim
    shape[dim] = width
    return output * gate.to(output.dtype).view(shape)


def channel_dim(module: nn.Module) -> int | None:
    """Dimension of a layer's output that holds its channels; None if it is unknown."""
    if type(module).forward in (nn.Linear.forward, nn.LayerNorm.forward):
        return -1
    if isinstance(module, nn.LayerNorm):
        return None
    known = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, *NORMS)) or is_frozen_norm(module)
    return 1 if known else None


def attach(module: nn.Module, gate: Tensor, piece: Slice) -> RemovableHandle:
    """Hook `gate` onto the output of `module`.

    Raises:
        ValueError: it is unknown which dimension of the output holds the channels.
    """
    dim = channel_dim(module)
    if dim is None:
        raise ValueError(
            f"gates: {piece.tensor!r} belongs to {type(module).__name__}, which cannot be gated; "
            "add the layer that makes its channels to methods.gates.skip in params.yaml"
        )

    if not piece.plain:
        piece = replace(piece, index=piece.index.to(gate.device))  # once, not in every step

    def multiply(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return gated_output(output, gate, piece, dim)

    return module.register_forward_hook(multiply)


def regulariser(gates: Sequence[Tensor], balance: float, target_gate_mean: float) -> Tensor:
    """`balance * (mean |gate| - s)^2` over all gates of all layers: wide layers weigh more.

    The gradient of |.| at 0 is 0, so only the task loss moves a gate that was clipped to 0.
    """
    mean = torch.cat(list(gates)).abs().mean()
    return balance * (mean - target_gate_mean) ** 2


@register_method("gates", GatesConfig)
class Gates(MethodBase):
    """Learns a gate per channel; all other parameters are frozen."""

    granularity = Granularity.STRUCTURED

    def __init__(self, config: GatesConfig) -> None:
        self.config = config
        self.gates: dict[str, nn.Parameter] = {}
        self._hooks: list[RemovableHandle] = []
        self._trainable: dict[str, bool] = {}

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        return (Phase("gates", recipe.epochs),)

    def gated_groups(self, model: nn.Module, units: Units) -> Sequence[ChannelGroup]:
        """The groups of `model` that this configuration gates.

        Raises:
            ValueError: none is left.
        """
        chosen = in_scope(units.channels, model, self.config.groups, self.config.skip)
        if not chosen:
            raise ValueError(
                f"gates: none of the {len(units.channels)} prunable channel groups is left with "
                f"groups: {self.config.groups}, skip: {list(self.config.skip)}; set "
                "methods.gates.groups to 'all' or shorten methods.gates.skip in params.yaml"
            )
        return chosen

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        """Give every channel a gate of 1 and freeze all weights."""
        parameter = next(model.parameters())
        for group in self.gated_groups(model, units):
            gate = nn.Parameter(parameter.new_ones(group.size))
            self.gates[group.name] = gate
            for name, piece in gate_places(group, model, self.config.after_depthwise).items():
                self._hooks.append(attach(model.get_submodule(name), gate, piece))
        self._trainable = {n: p.requires_grad for n, p in model.named_parameters()}
        model.requires_grad_(False)

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Optimizer:
        return Adam(list(self.gates.values()), lr=self.config.lr)

    def schedule(self, optimizer: Optimizer, phase: Phase, recipe: Recipe) -> Schedule:
        return EpochSchedule(optimizer, ScheduleConfig(name="constant"), recipe.epochs)

    def penalty(self, model: nn.Module) -> Tensor:
        gates = list(self.gates.values())
        return regulariser(gates, self.config.balance, self.config.target_gate_mean)

    @torch.no_grad()
    def after_step(self, model: nn.Module, at: StepContext) -> None:
        for gate in self.gates.values():
            gate.clamp_(0.0, 1.0)

    @torch.no_grad()
    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        gates = torch.cat(list(self.gates.values()))
        stats.logged["gate_mean"] = float(gates.mean())
        stats.logged["fraction_nonzero"] = float((gates != 0).float().mean())
        stats.logged["fraction_one"] = float((gates == 1).float().mean())
        return False

    @torch.no_grad()
    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        """The gates; groups without gates are absent and are not pruned."""
        known = units.by_name()
        return {name: gate.detach().clone() for name, gate in self.gates.items() if name in known}

    def release(self, model: nn.Module) -> None:
        """Remove the hooks and restore `requires_grad`; `saliency` still returns the gates."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trainable.get(name, parameter.requires_grad))
        self._trainable.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"gates": {name: gate.detach().clone() for name, gate in self.gates.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: the state's gates do not match the prepared model.
        """
        stored: Mapping[str, Tensor] = state["gates"]
        if {n: g.shape for n, g in stored.items()} != {n: g.shape for n, g in self.gates.items()}:
            raise ValueError(
                f"gates: the stored state has gates for {sorted(stored)}, the model needs "
                f"{sorted(self.gates)}: it belongs to another model or another methods.gates block"
            )
        for name, gate in self.gates.items():
            gate.copy_(stored[name])
