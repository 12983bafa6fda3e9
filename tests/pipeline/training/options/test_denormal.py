"""`flush_denormal`: numbers below 1.2e-38 are zeros while a network trains, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.training.method import MethodBase
from pipeline.training.options.denormal import flushed
from pipeline.training.phases import StepContext
from tests.pipeline.training.toy import RECIPE, job, train


def product() -> float:
    """1e-40, unless such numbers are zeros."""
    return float((torch.full((64,), 1e-20) * torch.full((64,), 1e-20)).sum())


class Watching(MethodBase):
    """Computes a subnormal number after every step."""

    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def after_step(self, model: nn.Module, at: StepContext) -> None:
        self.seen.add(product() == 0.0)


@pytest.mark.parametrize("flush", [False, True])
def test_a_training_takes_them_as_zeros_if_asked(tmp_path: Path, flush: bool) -> None:
    method = Watching()
    train(tmp_path, job(method, RECIPE.model_copy(update={"flush_denormal": flush})))
    assert method.seen == {flush}
    assert product() > 0, "the process goes on as before"


def test_an_error_ends_it_too() -> None:
    with pytest.raises(RuntimeError, match="stop"), flushed(True):
        raise RuntimeError("stop")
    assert product() > 0


def test_a_processor_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: False)
    with pytest.raises(ValueError, match=r"train\.flush_denormal: this processor cannot"):
        flushed(True).__enter__()
    with flushed(False):
        pass
