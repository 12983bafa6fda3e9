"""Quantised layers: their weights are no tensors of the network, and what they touch stays."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import conv, image
from tests.pipeline.units.laws import outputs


@pytest.fixture(autouse=True)
def _no_deprecations() -> Iterator[None]:
    """The old hooks and the quantisation of torch are what some networks still have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _quantised(kind: str) -> nn.Module:
    import torch.ao.quantization as q

    net = nn.Sequential(
        conv(3, 6), q.QuantStub(), conv(6, 6), nn.ReLU(), conv(6, 5), q.DeQuantStub(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip
    if kind == "dynamic":
        return q.quantize_dynamic(net.eval(), {nn.Linear})
    if kind == "trained for it":
        net.qconfig = q.get_default_qat_qconfig(torch.backends.quantized.engine)
        return q.prepare_qat(net.train())
    for layer in list(net)[1:6]:
        layer.qconfig = q.get_default_qconfig(torch.backends.quantized.engine)
    prepared = q.prepare(net.eval())
    outputs(prepared, image())
    return q.convert(prepared)


@pytest.mark.parametrize("kind", ["dynamic", "static", "trained for it"])
def test_quantised_layers_keep_what_they_touch(kind: str) -> None:
    torch.manual_seed(0)
    net = _quantised(kind)
    before = copy.deepcopy(net.state_dict())
    units = trace_units(net, image())
    ordinary = {"dynamic": {"0", "2"}, "static": {"8"}, "trained for it": set()}
    assert {g.name for g in units.prunable} == ordinary[kind]
    assert all(g.reason for g in units.groups if not g.prunable)
    after = net.state_dict()
    assert all(torch.equal(x, after[k]) for k, x in before.items() if isinstance(x, Tensor))
