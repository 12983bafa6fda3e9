"""What the blocks compute, against outputs of Pruning from Scratch's code and against formulas.

`data/block_outputs.json`: eval-mode input, weights and output of its blocks (commit 3102332, torch
2.15, CPU); their channel gates are folded into the BatchNorm behind which they stand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models._blocks import BasicBlock
from models.mobilenet import InvertedResidual, separable
from models.preact import PreActBasic, PreActBottleneck
from models.resnet_cifar import ZeroPad
from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model

REFERENCE: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "block_outputs.json").read_text()
)


def _randomise(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.running_var):
                nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]
            for values in (layer.bias, layer.running_mean):
                nn.init.normal_(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "block", "core"),
    [
        ("basic", BasicBlock(4, 3, 4, 1), ""),
        ("separable", separable(3, 4, 1), ""),
        ("inverted", InvertedResidual(3, 4, 2, 1), "branch"),
    ],
)
def test_blocks_reproduce_the_original_outputs(name: str, block: nn.Module, core: str) -> None:
    reference = REFERENCE[name]
    state = {k: torch.tensor(v) for k, v in reference["state_dict"].items()}
    block.get_submodule(core).load_state_dict(state)
    with torch.no_grad():
        y = block.eval()(torch.tensor(reference["input"]))
    torch.testing.assert_close(y, torch.tensor(reference["output"]), rtol=1e-5, atol=1e-6)


def test_inverted_block_clips_at_six_and_adds_its_input_where_it_fits() -> None:
    torch.manual_seed(0)
    block = InvertedResidual(3, 5, 3, 1).eval()
    x = 100 * torch.randn(2, 3, 4, 4)
    expand = block.branch[:3]
    assert expand(x).max().item() == 6
    torch.testing.assert_close(block(x), x + block.branch(x))


def test_preactivation_blocks_read_like_the_paper() -> None:
    """`x + F(x)` with F = conv(relu(bn(...))) twice or three times; no ReLU after the sum."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    basic, bottleneck = PreActBasic(4, 3, 4, 1).eval(), PreActBottleneck(4, 3, 4, 1).eval()
    for block, pairs in ((basic, (1, 2)), (bottleneck, (1, 2, 3))):
        _randomise(block)
        y: Tensor = x
        for i in pairs:
            norm, conv = block.get_submodule(f"bn{i}"), block.get_submodule(f"conv{i}")
            y = conv(torch.relu(norm(y)))
        torch.testing.assert_close(block(x), x + y)
        assert block(x).min() < 0


def test_zero_pad_takes_every_second_pixel_and_pads_both_sides() -> None:
    x = torch.randn(1, 4, 6, 6)
    y = ZeroPad(4, 8, 2)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


@pytest.mark.parametrize(("activated", "stride"), [(True, 2), (False, 2), (True, 1)])
def test_what_a_preactivation_shortcut_reads(activated: bool, stride: int) -> None:
    block = PreActBasic(4, 4, 4 * stride, stride, activated).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    projects = stride == 2
    seen = torch.relu(block.bn1(x)) if activated and projects else x
    torch.testing.assert_close(block(x), block.shortcut(seen))


@pytest.mark.parametrize(
    ("network", "args"),
    [
        ("mlp/mlp", {"widths": [4, 3]}),
        ("small/vgg_small", {"width": 2}),
        ("small/resnet8", {"width": 2}),
        ("vgg/vgg16", {"width": 2}),
        ("vgg/vgg16_bn", {"width": 2}),
        ("vgg/vgg19_bn_gap", {"width": 2}),
        ("resnet_cifar/resnet18", {"width": 2}),
        ("mobilenet/mobilenet_v1", {"width": 2}),
    ],
)
def test_norm_and_relu_follow_every_layer_but_the_classifier(
    network: str, args: dict[str, object]
) -> None:
    family, name = network.split("/")
    model = build_model(family, name, DatasetInfo("images", (3, 32, 32), 10), args)
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU)
    *body, last = (
        type(m)
        for n, m in model.named_modules()
        if isinstance(m, kinds) and not n.startswith("layer")
    )
    assert last is nn.Linear
    after_conv = [nn.BatchNorm2d, nn.ReLU] if nn.BatchNorm2d in body else [nn.ReLU]
    for i, kind in enumerate(body):
        if kind is nn.Conv2d:
            assert body[i + 1 :][: len(after_conv)] == after_conv
        if kind is nn.Linear:
            assert body[i + 1] is nn.ReLU


@pytest.mark.parametrize("name", ["preact_resnet", "preact_resnetb", "preact_resnet18"])
def test_preactivation_networks_end_with_norm_and_relu(name: str) -> None:
    model = build_model("preact", name, DatasetInfo("images", (3, 8, 8), 10), {"width": 2})
    tail = [type(m) for m in model.children() if not isinstance(m, nn.Sequential)]
    pooling = [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert tail == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, *pooling]
