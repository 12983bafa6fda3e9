"""HSPG: epsilon adapts as in the BERT runs of the original."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.hspg import HSPG, HSPGConfig
from pipeline.units.rows import Rows
from tests.methods.oto.oto_traces import (
    plain_group,
    zero_rows,
)


def test_adapting_epsilon_follows_the_bert_rule() -> None:
    """+0.1 while the linear groups are below their bound and sparsity stalls; else back to 0."""
    named = {"a": nn.Parameter(torch.ones(4, 3)), "b": nn.Parameter(torch.ones(4, 3, 1, 1))}
    rows = Rows(named, [plain_group(n, 4, (n,)) for n in named])
    options = HSPGConfig(penalty=0.0, upper_group_sparsity_linear=0.5, adapt_epsilon_steps=2)
    optimizer = HSPG(named.values(), rows, 0.0, options)

    def after_two_steps() -> list[float]:
        for _ in range(2):
            for p in named.values():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        return optimizer.units["epsilon"].tolist()

    assert after_two_steps() == pytest.approx([0.1, 0.0])
    assert after_two_steps() == pytest.approx([0.2, 0.0])
    named["a"].data[:2] = 0.0
    assert after_two_steps() == pytest.approx([0.2, 0.0])  # sparsity has just grown
    assert after_two_steps() == [0.0, 0.0]  # stalled at the bound


def _pull(p: nn.Parameter, to: list[float]) -> None:
    """Set the gradient such that a step of lr 1 multiplies the weight by `to`."""
    p.grad = p.detach() * (1.0 - torch.tensor(to, dtype=p.dtype)[:, None])


def test_an_adapted_epsilon_acts_from_the_next_step_on() -> None:
    """A step to 0.05 x leaves the half-space for epsilon 0.1 but not for 0."""
    named = {"a": nn.Parameter(torch.ones(1, 1, dtype=torch.float64))}
    config = HSPGConfig(penalty=0.0, adapt_epsilon_steps=1)
    optimizer = HSPG(named.values(), Rows(named, [plain_group("a", 1, ("a",))]), 1.0, config)
    _pull(named["a"], [0.05])
    optimizer.step()
    assert named["a"].item() == pytest.approx(0.05)
    assert optimizer.units["epsilon"].tolist() == [pytest.approx(0.1)]
    _pull(named["a"], [0.05])
    optimizer.step()
    assert named["a"].item() == 0.0


def test_epsilon_adapts_to_the_zeros_that_the_step_left() -> None:
    named = {"a": nn.Parameter(torch.ones(4, 1, dtype=torch.float64))}
    config = HSPGConfig(penalty=0.0, adapt_epsilon_steps=1)
    optimizer = HSPG(named.values(), Rows(named, [plain_group("a", 4, ("a",))]), 1.0, config)
    _pull(named["a"], [-1.0, -1.0, 1.0, 1.0])
    optimizer.step()
    assert zero_rows(plain_group("a", 4, ("a",)), named) == [0, 1]
    assert optimizer.units["sparsity_seen"].item() == 0.5
    assert optimizer.units["epsilon"].tolist() == [0.0]  # sparsity has just grown
