"""Slimming: the sub-gradient is the penalty's gradient, the score is |gamma|, the seed's widths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from methods.slimming import SlimmingConfig
from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model, method_spec
from pipeline.selection.criteria import scale_saliency
from pipeline.selection.masks import count_of, drop_smallest
from pipeline.training.method import Method
from pipeline.training.phases import Phase, StepContext
from pipeline.units.groups import ChannelGroup, Granularity, Slice, Units

TRACE = json.loads((Path(__file__).parent / "data" / "eb_seed_structured.json").read_text())
AT = StepContext(Phase("train", 1), 0, 0, 1)


def whole(tensor: str, role: str, size: int, first: int = 0, dim: int = 0) -> Slice:
    return Slice(tensor, dim, role, torch.arange(first, first + size)[:, None])


def small_net() -> tuple[nn.Sequential, Units]:
    """conv-BN with a consumer, then a convolution without BatchNorm."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
    )
    first = ChannelGroup(
        "0",
        4,
        (
            whole("0.weight", "producer", 4),
            whole("0.bias", "producer", 4),
            whole("1.weight", "norm", 4),
            whole("1.bias", "norm", 4),
            whole("1.running_mean", "norm", 4),
            whole("3.weight", "consumer", 4, dim=1),
        ),
    )
    bare = ChannelGroup("3", 3, (whole("3.weight", "producer", 3),))
    head = ChannelGroup("5", 2, (whole("6.weight", "norm", 2),), prunable=False)
    return net, Units(("0.weight", "3.weight", "5.weight"), (first, bare, head))


def prepared(net: nn.Module, units: Units, **settings: object) -> Method:
    spec = method_spec("slimming")
    method = spec.build(SlimmingConfig(**settings))
    method.prepare(net, units)
    return method


def test_subgradient_is_the_gradient_of_the_penalty() -> None:
    net, units = small_net()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.3, -0.2, 0.0, 1.0]))
    method = prepared(net, units, penalty=0.05)
    inputs = torch.randn(3, 1, 6, 6)

    def gradients(penalised: bool) -> dict[str, Tensor]:
        net.zero_grad()
        loss = net(inputs).square().mean()
        (loss + 0.05 * net[1].weight.abs().sum() if penalised else loss).backward()
        if not penalised:
            method.after_backward(net, AT)
        return {n: p.grad.clone() for n, p in net.named_parameters()}

    ours, theirs = gradients(False), gradients(True)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient)


def test_scores_and_groups() -> None:
    net, units = small_net()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.3, -0.2, 0.0, 1.0]))
        net[1].bias.copy_(torch.tensor([0.0, 0.0, 0.7, 0.0]))
    method = prepared(net, units)
    assert method.granularity is Granularity.STRUCTURED
    saliency = method.saliency(net, units)
    assert list(saliency) == ["0"], "no score without BatchNorm, none for unprunable groups"
    assert saliency["0"].tolist() == pytest.approx([0.3, 0.2, 0.0, 1.0])
    assert saliency["0"][2] > 0, "scale 0 with a shift is not removable for free"
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias):
            tensor[2] = 0.0
    assert method.saliency(net, units)["0"][2] == 0


def test_gamma_init_and_no_batchnorm() -> None:
    net, units = small_net()
    prepared(net, units, gamma_init=0.5)
    assert net[1].weight.tolist() == [0.5] * 4
    assert net[6].weight.tolist() == [1.0] * 2, "an unprunable scale is left alone"
    with pytest.raises(ValueError, match="BatchNorm"):
        prepared(net, Units(units.weights, units.groups[1:2]))


def test_several_batchnorms_and_an_offset() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)
            self.a, self.b = nn.BatchNorm2d(2), nn.BatchNorm2d(5)

    net = Net()
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([1.0, -2.0]))
        net.b.weight.copy_(torch.tensor([9.0, 9.0, 9.0, 3.0, 8.0]))
    group = ChannelGroup(
        "conv",
        2,
        (
            whole("conv.weight", "producer", 2),
            whole("a.weight", "norm", 2),
            whole("b.weight", "norm", 2, first=3),
        ),
    )
    assert scale_saliency(net, [group], "mean")["conv"].tolist() == [2.0, 5.0]
    assert scale_saliency(net, [group], "max")["conv"].tolist() == [3.0, 8.0]


def seed_width(kept: list[int]) -> int:
    """Parameters of the seed's thin bottleneck net: inner widths cut, residual stream whole."""
    norms = [16, 16, 16, 64, 16, 16, 64, 32, 32, 128, 32, 32, 128, 64, 64, 256, 64, 64, 256]
    total, stream = 3 * 9 * 16, 16
    for block in range(6):
        first, inner, last = kept[3 * block : 3 * block + 3]
        out = 64 * 2 ** (block // 2)
        total += first * inner + 9 * inner * last + last * out
        total += 2 * (norms[3 * block] + inner + last)
        total += stream * out if stream != out else 0
        stream = out
    return total + 2 * norms[-1] + 10 * kept[-1] + 10


@pytest.mark.parametrize("case", TRACE, ids=lambda c: str(c["percent"]))
def test_widths_of_the_seed(case: dict[str, object]) -> None:
    """Scales frac((i + 1) / golden ratio), one group per BatchNorm as with channel selection."""
    model = build_model("preact", "preact_resnetb", DatasetInfo("cifar10", (3, 32, 32), 10))
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(p.numel() for p in model.parameters()) == case["params_dense"]
    groups, start = [], 0
    for name, norm in norms:
        index = torch.arange(start, start + norm.num_features, dtype=torch.float64)
        with torch.no_grad():
            norm.weight.copy_(((index + 1) * 0.6180339887498949).frac())
        groups.append(
            ChannelGroup(name, len(index), (whole(f"{name}.weight", "norm", len(index)),))
        )
        start += norm.num_features
    assert start == case["bn_channels"]
    scores = scale_saliency(model, groups)
    alive = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    keep = drop_smallest(scores, alive, count_of(case["percent"], start))
    kept = [int(mask.sum()) for mask in keep.values()]
    assert kept == case["cfg"]
    assert sum(kept) == case["kept"] == start - round(case["percent"] * start)
    assert seed_width(kept) == case["params_slim"]
