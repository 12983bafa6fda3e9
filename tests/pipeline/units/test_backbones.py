"""Backbones of segmentation and detection: laws on the feature maps they give out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan


def fully_convolutional() -> nn.Module:
    from torchvision.models.segmentation import fcn_resnet50

    torch.manual_seed(0)
    model: nn.Module = fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)
    return model


def deeplab() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    torch.manual_seed(0)
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def pyramid() -> nn.Module:
    """The backbone of Faster R-CNN and RetinaNet."""
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    model: nn.Module = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    return model


def picture(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("build", [fully_convolutional, deeplab])
def test_segmentation(build: Callable[[], nn.Module]) -> None:
    units = trace_units(build(), picture(64))
    assert {g.reason for g in units.groups if not g.prunable} == {"it reaches the network's output"}
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    assert_laws(build, picture(64), units, plan)


@pytest.mark.slow
def test_detection() -> None:
    """The pyramid's lateral sums are one stream, and what leaves them is the output."""
    units = trace_units(pyramid(), picture(64))
    whole = [g for g in units.groups if not g.prunable]
    assert all("it reaches the network's output" in g.reason for g in whole)
    assert sum(g.size for g in units.prunable) == 2880 + 256
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    assert_laws(pyramid, picture(64), units, plan)
