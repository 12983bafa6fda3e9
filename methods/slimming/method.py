"""Network slimming: L1 on the scales of BatchNorm; the channels with the smallest are removed.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017
(arXiv:1708.06519). The sub-gradient `penalty * sign(gamma)` is added to the gradient; channels
are ranked by |gamma|. Units: channels of a group. Rule: `fraction`, global. Selection's floor per
group applies, whereas the paper's own code can empty a layer.

Only scales of prunable groups are penalised. A group without BatchNorm has no score and is not
pruned.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.registry import register_method
from pipeline.selection.criteria import add_l1_subgradient, scale_saliency, trained_scales
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import StepContext
from pipeline.training.recipe import NonNegative, Positive, Strict
from pipeline.units.groups import Granularity, Units


class SlimmingConfig(Strict):
    """Settings of network slimming.

    Attributes:
        penalty: lambda of the paper, the weight of the L1 norm of the BatchNorm scales gamma: 1e-4
            for VGG, 1e-5 for ResNet and DenseNet.
        gamma_init: initial value of the scales, 0.5 in the paper; none leaves them unchanged (a
            network with trained weights).
        across: score of a channel with several BatchNorms (a residual stream): mean or max of their
            |gamma|.
    """

    penalty: NonNegative = 1e-4
    gamma_init: Positive | None = None
    across: Literal["mean", "max"] = "mean"


@register_method("slimming", SlimmingConfig)
class Slimming(MethodBase):
    """Dense training with an L1 penalty on the BatchNorm scales of channels."""

    granularity = Granularity.STRUCTURED

    def __init__(self, config: SlimmingConfig) -> None:
        self.config = config
        self.scales: list[nn.Parameter] = []

    @torch.no_grad()
    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        self.scales = trained_scales(model, units.channels)
        if self.config.gamma_init is not None:
            for scale in self.scales:
                scale.fill_(self.config.gamma_init)

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        add_l1_subgradient(self.scales, self.config.penalty)

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        """|gamma|; 0 only if the whole channel is 0, including its producers and shifts."""
        return scale_saliency(model, units.channels, self.config.across)
