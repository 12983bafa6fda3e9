"""Early-bird: the networks of the original have its MACs, FLOPs and parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.data.info import DatasetInfo
from pipeline.measure.count import count
from pipeline.registry import build_model

NETWORKS = {
    "vgg11": ("vgg", "vgg11_bn_gap", {}, 10),
    "vgg16": ("vgg", "vgg16_bn_gap", {}, 10),
    "vgg16-cifar100": ("vgg", "vgg16_bn_gap", {}, 100),
    "vgg19": ("vgg", "vgg19_bn_gap", {}, 10),
    "preresnet20": ("preact", "preact_resnetb", {"depth": 20}, 10),
    "preresnet101": ("preact", "preact_resnetb", {"depth": 101}, 10),
    "preresnet164": ("preact", "preact_resnetb", {"depth": 164}, 10),
}


ORIGINAL = json.loads((Path(__file__).parent / "data" / "eb_flops.json").read_text())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_original_have_its_macs_flops_and_parameters(name: str) -> None:
    """Its counter says 2 MACs + rest or, by a switch, MACs + rest; the rest is 2 per output of
    BatchNorm and 1 of the ReLU behind it, 4 per output of max-pooling, 1 per linear output; it
    counts one entry per channel of every channel selection as a parameter."""
    row = next(r for r in ORIGINAL if r["model"] == name)
    family, network, args, classes = NETWORKS[name]
    model = build_model(family, network, DatasetInfo("cifar", (3, 32, 32), classes), args)
    counted = count(model.eval(), torch.zeros(1, 3, 32, 32))
    assert (
        counted.macs == row["flops_original_counter_x2"] - row["flops_counter_multiply_adds_False"]
    )
    assert 2 * counted.macs + _rest(model) == row["flops_original_counter_x2"]
    first = [m for n, m in model.named_modules() if n.endswith("bn1") or n == "bn"]
    selected = sum(m.num_features for m in first) if family == "preact" else 0
    assert counted.params == row["params_original_counter"] - selected


def _rest(model: nn.Module) -> int:
    """Operations other than multiply-adds, as the original counts them."""
    found: list[int] = []
    for kind, each in ((nn.BatchNorm2d, 3), (nn.MaxPool2d, 4), (nn.Linear, 1)):
        for module in model.modules():
            if isinstance(module, kind):
                module.register_forward_hook(
                    lambda *call, each=each: found.append(each * call[-1].numel())
                )
    model(torch.zeros(1, 3, 32, 32))
    return sum(found)


def test_every_network_of_the_trace_is_counted() -> None:
    assert {row["model"] for row in ORIGINAL} == set(NETWORKS)
