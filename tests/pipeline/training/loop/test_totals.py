"""Sums of an epoch do not depend on when they are read."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.loop.distributed import ALONE
from pipeline.training.loop.totals import Totals


def totals(read_every: int, losses: torch.Tensor) -> Totals:
    found = Totals()
    for step, loss in enumerate(losses):
        found.add(loss, {"top1": torch.tensor(step % 5)}, 7 + step % 2, step)
        if (step + 1) % read_every == 0:
            found = Totals.restored(found.state_dict())
    return found


@pytest.mark.parametrize("read_every", [1, 3, 100])
def test_reading_and_resuming_change_no_bit(read_every: int) -> None:
    losses = torch.rand(20, generator=torch.Generator().manual_seed(0)) / 3
    found = totals(read_every, losses).over(ALONE)
    wanted = torch.zeros((), dtype=torch.float64)
    for step, loss in enumerate(losses):
        wanted = wanted + loss.double() * (7 + step % 2)
    assert found.loss == float(wanted)
    assert found.means() == {
        "loss": float(wanted) / 150,
        "last_loss": float(losses[-1]),
        "top1": 100.0 * 40 / 150,
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_step_that_is_not_finite_is_found(bad: float) -> None:
    losses = torch.ones(6)
    losses[2] = losses[4] = bad
    found = totals(100, losses)
    assert found.first_bad_step(ALONE) == 2
    assert totals(100, torch.ones(6)).first_bad_step(ALONE) == -1
