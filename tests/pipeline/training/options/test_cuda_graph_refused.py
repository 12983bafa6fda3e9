"""What `train.cuda_graph` refuses, and which faults of a method the graph in software detects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.training.loop.distributed import Team
from pipeline.training.method import MethodBase
from pipeline.training.options.cuda_graph import ReplayError, check_replay
from pipeline.training.phases import StepContext
from pipeline.training.recipe import Recipe
from tests.conformance.test_methods import RECIPE
from tests.pipeline.training.toy import same
from tests.replayed import Graphs, graphs_in, job, train
from tests.soft_graph import Refused


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    return graphs_in(monkeypatch)


class CountsInPython(MethodBase):
    """Shrinks weights by another factor in every step, without reporting it in `replay_key`."""

    def __init__(self) -> None:
        self.count = 0

    @torch.no_grad()
    def after_step(self, model: nn.Module, at: StepContext) -> None:
        self.count += 1
        for weight in model.parameters():
            weight.mul_(1.0 - 0.01 / self.count)


class MakesAnew(MethodBase):
    """Stores a mean of the gradients in a new tensor after every step."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3)

    @torch.no_grad()
    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        bias = model.get_parameter("linear.bias")
        assert bias.grad is not None
        self.mean = self.mean * 0.9 + bias.grad
        bias.grad.copy_(self.mean)


class Reads(MethodBase):
    def after_step(self, model: nn.Module, at: StepContext) -> None:
        assert float(next(model.parameters()).detach().sum()) < 1e9


def test_a_method_that_hides_its_numbers_would_be_seen(tmp_path: Path, graphs: Graphs) -> None:
    plain, other = (replace(job("dense", on), method=CountsInPython()) for on in (False, True))
    train(plain, tmp_path / "plain")
    train(other, tmp_path / "noted")
    assert not same(plain.model, other.model)


def test_so_would_one_that_gives_memory_back(tmp_path: Path, graphs: Graphs) -> None:
    with pytest.raises(Refused, match="given back"):
        train(replace(job("dense", True), method=MakesAnew()), tmp_path)


def test_so_would_one_that_reads(tmp_path: Path, graphs: Graphs) -> None:
    with pytest.raises(Refused, match="_local_scalar_dense"):
        train(replace(job("dense", True), method=Reads()), tmp_path)


def test_without_a_gpu_it_says_so_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"cuda_graph: true.*'cpu'.*cuda_graph: false"):
        train(job("dense", True), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_several_processes_are_refused() -> None:
    made = replace(job("dense", True), device=torch.device("cuda"), team=Team(0, 2))
    with pytest.raises(ReplayError, match="2 processes"):
        check_replay(made)


def test_a_rate_per_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule: linear.*cuda_graph: false"):
        Recipe(epochs=1, schedule={"name": "linear"}, cuda_graph=True)


def test_records_of_other_trainings_do_not_know_it() -> None:
    assert "cuda_graph" not in RECIPE.model_dump()
    assert RECIPE.model_copy(update={"cuda_graph": True}).model_dump()["cuda_graph"] is True
