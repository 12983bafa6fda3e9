"""A recurrent layer is traced on the first steps of its sequence, with the same units as on all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.units.groups import Units
from pipeline.units.trace import Attention, trace_units
from pipeline.units.trace.skipped import sequences

LENGTH = 11


class Net(nn.Module):
    """Convolution or linear layer, recurrent layer, attention over the steps, linear layer."""

    def __init__(self, layer: nn.RNNBase, batched: bool = True, given: bool = False) -> None:
        super().__init__()
        self.layer, self.batched, self.given = layer, batched, given
        width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        self.inside = nn.Linear(3, layer.input_size)
        self.query, self.key = nn.Linear(width, 6), nn.Linear(width, 6)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        if not self.batched:
            x = x[0]
        first = None
        if self.given:  # the entry state comes from the input
            ways = 2 if self.layer.bidirectional else 1
            state = x.mean(1, keepdim=True).mean(2, keepdim=True).transpose(0, 1)
            state = state.expand(ways * self.layer.num_layers, -1, self.layer.hidden_size)
            first = (state, state) if isinstance(self.layer, nn.LSTM) else state
        y, last = self.layer(x, first)
        last = last[0] if isinstance(last, tuple) else last
        scores = self.query(y) @ self.key(y).transpose(-1, -2)
        return self.out(scores.softmax(-1) @ y).sum() + last.sum()


LAYERS: dict[str, tuple[nn.RNNBase, dict[str, Any]]] = {
    "lstm": (nn.LSTM(4, 5, batch_first=True), {}),
    "both ways": (nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True), {}),
    "projected": (nn.LSTM(4, 6, batch_first=True, proj_size=3, bias=False), {}),
    "unbatched": (nn.LSTM(4, 5), {"batched": False}),
    "entry state": (nn.LSTM(4, 5, batch_first=True), {"given": True}),
    "gru": (nn.GRU(4, 5, 2, batch_first=True), {}),
    "gru, entry state": (nn.GRU(4, 5, batch_first=True, bidirectional=True), {"given": True}),
    "rnn": (nn.RNN(4, 5, batch_first=True, nonlinearity="relu"), {}),
}


def traced(
    net: nn.Module, attention: Attention, monkeypatch: pytest.MonkeyPatch, steps: int
) -> tuple[Units, int]:
    """Units, and how many time steps the recurrent layer of the network ran at most."""
    ran: list[int] = []
    whole = torch._VF

    class Counted:
        def __getattr__(self, name: str) -> Any:
            def counted(x: Tensor, *rest: Any) -> Any:
                ran.append(max(x.shape[:2]))
                return getattr(whole, name)(x, *rest)

            return counted

    with monkeypatch.context() as patch:
        patch.setattr(sequences, "STEPS", steps)
        patch.setattr(nn.modules.rnn, "_VF", Counted())
        patch.setattr(
            nn.modules.rnn,
            "_rnn_impls",
            {key: getattr(Counted(), key.lower()) for key in nn.modules.rnn._rnn_impls},
        )
        return trace_units(net, torch.rand(2, LENGTH, 3), attention=attention), max(ran)


def said(units: Units) -> Any:
    groups = [
        (
            g.name,
            g.size,
            g.prunable,
            g.reason,
            [(s.tensor, s.dim, s.index.tolist()) for s in g.slices],
        )
        for g in units.groups
    ]
    return groups, units.attributes, units.products, units.read_elsewhere, units.weights


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
@pytest.mark.parametrize("name", LAYERS)
def test_first_steps_tell_what_all_steps_do(
    name: str, attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, how = LAYERS[name]
    net = Net(layer, **how).eval()
    short, few = traced(net, attention, monkeypatch, sequences.STEPS)
    whole, all_ = traced(net, attention, monkeypatch, 10**6)
    assert (few, all_) == (sequences.STEPS, LENGTH)
    assert short.products
    assert said(short) == said(whole)


def test_three_steps_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer, how in LAYERS.values():
        net = Net(layer, **how).eval()
        three, _ = traced(net, "head_dim", monkeypatch, sequences.STEPS - 1)
        assert said(three) == said(traced(net, "head_dim", monkeypatch, 10**6)[0])


class Joined(nn.Module):
    """What the recurrent layer reads is not the same at all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layer = nn.Linear(3, LENGTH), nn.LSTM(1, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.rows(x.mean(1))[:, :, None])[0]
        return y


def test_steps_that_differ_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    units, ran = traced(Joined().eval(), "heads", monkeypatch, sequences.STEPS)
    assert ran == LENGTH
    assert not any(g.prunable for g in units.groups if g.name == "rows")
