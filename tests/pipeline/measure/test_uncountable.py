"""Counting where weights are written in place, formulas are missing or values are read."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.measure import reads
from pipeline.measure.count import count
from tests.pipeline.measure.test_stored_factors import TOKENS, WIDTH, X, recurrent
from tests.pipeline.units.cases import Net


def test_a_weight_that_its_module_writes_to_is_dense_and_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(n: Net, x: Tensor) -> Tensor:
        weight = n.layer.weight.clone()
        weight[0].zero_()  # through a view
        return functional.linear(x, weight)

    monkeypatch.setattr(reads, "_named", set())
    with caplog.at_level(logging.WARNING, "espalier.count"):
        counted = count(Net(run, layer=nn.Linear(WIDTH, 6)), X)
    assert counted.macs_nonzero == counted.macs == TOKENS * WIDTH * 6
    assert "writes to a weight in place" in caplog.text


def test_an_operator_without_a_formula_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "_named", set())
    model = Net(lambda n, x: n.layer(torch.fft.rfft(x).abs()), layer=nn.Linear(5, 2))
    with caplog.at_level(logging.WARNING, "espalier.count"):
        for _ in range(2):
            assert count(model, X).macs == TOKENS * 10
    (record,) = caplog.records
    assert "_fft_r2c has no formula and counts as 0 (1 of " in record.getMessage()


def test_a_network_on_values_counts_as_on_shapes() -> None:
    """Code that reads values runs on the network's own tensors: the same operators all the same."""

    def looks(n: Net, x: Tensor) -> Tensor:
        assert float(x.sum()) == 0
        return n.layer(x)[0]

    for kind in (nn.LSTM, nn.GRU):
        layer = kind(WIDTH, 6, batch_first=True)
        with torch.no_grad():
            layer.weight_hh_l0[:3] = 0
        counted, plain = count(Net(looks, layer=layer), X), count(layer, X)
        assert (counted.macs, counted.macs_nonzero) == (plain.macs, plain.macs_nonzero)
        assert plain.macs_nonzero == recurrent(layer)
