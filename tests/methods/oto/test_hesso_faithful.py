"""HESSO's `faithful`: the candidates the authors' program draws and spares, and its decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from methods.hesso import HESSO, HESSOConfig
from pipeline.units.groups import ChannelGroup
from pipeline.units.rows import Rows
from tests.methods.oto.oto_traces import direction, piece, plain_group, sgd


def _by_magnitude(sizes: dict[str, list[float]], **settings: Any) -> tuple[HESSO, Any]:
    """A faithful HESSO that ranks by magnitude, one number per channel, and its parameters."""
    named = {n: nn.Parameter(torch.tensor(v)[:, None]) for n, v in sizes.items()}
    rows = Rows(named, [plain_group(n, len(v), (n,)) for n, v in sizes.items()])
    config = HESSOConfig(criteria={"magnitude": 1.0}, faithful=True, **settings)
    return HESSO(named.values(), rows, sgd(0.0), config), named


def _pruned(optimizer: HESSO, named: dict[str, nn.Parameter], steps: int) -> dict[str, list[int]]:
    optimizer.schedule(0, steps)
    for _ in range(steps):
        for p in named.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    masks = optimizer.rows.split(optimizer.units["pruned"])
    return {n: m.nonzero().flatten().tolist() for n, m in masks.items()}


def test_a_spared_candidate_is_never_drawn_again() -> None:
    """Two periods of two channels: the last channel of `a` is drawn, spared, and not redrawn."""
    sizes = {"a": [0.1, 0.2], "b": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}
    made = _by_magnitude(sizes, target_group_sparsity=0.5, periods=2)
    assert _pruned(*made, steps=2) == {"a": [0], "b": [0, 1]}


def test_a_group_spares_its_last_candidates() -> None:
    """Three of four are candidates and two must be kept; the smallest, at position 2, is spared."""
    sizes = {"a": [0.3, 0.2, 0.1, 0.9], "b": [1.0, 1.0, 1.0, 1.0]}
    made = _by_magnitude(sizes, target_group_sparsity=0.4, periods=1, group_divisible=2)
    assert _pruned(*made, steps=1) == {"a": [0, 1], "b": []}


def test_decay_behind_a_concat_acts_on_the_shrunk_weight() -> None:
    """lr * decay = 0.05; in the first of four steps a redundant channel is shrunk by 2/3."""
    named = {n: nn.Parameter(torch.full((4, 1), v).double()) for n, v in (("a", 0.1), ("b", 1.0))}
    named["bn"] = nn.Parameter(torch.full((8,), 2.0, dtype=torch.float64))
    groups = [
        ChannelGroup(n, 4, (piece(n, torch.arange(4)), piece("bn", torch.arange(4) + 4 * i)))
        for i, n in enumerate("ab")
    ]
    config = HESSOConfig(
        target_group_sparsity=0.3, periods=1, criteria={"magnitude": 1.0}, faithful=True
    )
    asked = direction("adamw", 0.1, decay=0.5)
    optimizer = HESSO(named.values(), Rows(named, groups), asked, config)
    optimizer.schedule(0, 4)
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.units["redundant"].nonzero().flatten().tolist() == [0, 1]
    want = torch.full((8,), 2.0, dtype=torch.float64)
    want[:2] *= 2 / 3
    torch.testing.assert_close(named["bn"].detach(), want * (1 - 0.05))
