"""`train.cuda_graph` without a GPU: every method, replayed by a graph in software, ends with the
same bits as the ordinary training. The last test does the same on a GPU, if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import registry
from pipeline.training.loop.job import Job
from pipeline.training.options import cuda_graph as replay
from pipeline.training.recipe import OptimizerConfig, ScheduleConfig
from tests.conformance.test_methods import METHODS, EightSteps, Stopped
from tests.replayed import (
    Batches,
    Graphs,
    compare,
    expect_same,
    graphs_in,
    job,
    train,
)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    return graphs_in(monkeypatch)


# 5 of each epoch's 8 steps are replayed: the first two are eager, and the last batch is smaller.
# dhspg begins a stage in each of two epochs; hspg sometimes adapts epsilon, in an ordinary step;
# hesso and hesso_cric use other numbers in every step while they prune; early_bird finds its ticket
# after two epochs; imp has another round of three epochs.
REPLAYED = {
    "dense": 20,
    "dhspg": 14,
    "early_bird": 10,
    "gmp": 20,
    "hesso": 13,
    "hesso_cric": 11,
    "hspg": 11,
    "imp": 35,
    "init_pruning": 20,
    "sfw": 20,
    "slimming": 20,
}


def test_every_method_has_an_answer() -> None:
    assert sorted([*REPLAYED, "gates"]) == sorted(METHODS)  # gates: see their Adam, below


@pytest.mark.parametrize("name", REPLAYED)
def test_a_replayed_training_ends_with_the_same_bits(
    name: str, tmp_path: Path, graphs: Graphs
) -> None:
    assert compare(name, tmp_path, graphs) == REPLAYED[name]


FORMS: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"accumulation": 2},
    {"label_smoothing": 0.1},
    {"mixup": 0.3},
    {"ema_decay": 0.9},
    {"optimizer": OptimizerConfig(lr=0.05, decay_norm_and_bias=False)},
]


@pytest.mark.parametrize("recipe", FORMS, ids=lambda recipe: next(iter(recipe)))
def test_so_does_another_form_of_it(recipe: dict[str, Any], tmp_path: Path, graphs: Graphs) -> None:
    name = "imp" if "ema_decay" in recipe else "dense"  # an average that is masked, too
    assert compare(name, tmp_path, graphs, **recipe) == REPLAYED[name]


def test_numbers_may_change_between_epochs(tmp_path: Path, graphs: Graphs) -> None:
    """HSPG's penalty changes, at the same learning rate."""
    spec = registry.method_spec("hspg")

    def falling(graph: bool) -> Job:
        config = spec.config(penalty=0.5, warmup_epochs=0, penalty_milestones=(1, 3))
        recipe = {"schedule": ScheduleConfig(name="constant")}
        return replace(job("hspg", graph, **recipe), method=spec.build(config))

    rows = train(falling(False), tmp_path / "plain")
    again = train(falling(True), tmp_path / "noted")
    expect_same(rows, again, tmp_path)
    assert graphs.replayed == 20


@pytest.mark.parametrize("name", ["hspg", "hesso"])
def test_so_does_one_that_leaves_channels_out(name: str, tmp_path: Path, graphs: Graphs) -> None:
    assert compare(name, tmp_path, graphs, compact=True) == REPLAYED[name]
    assert graphs.replays[-1].step.passes.forward.small is not None


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("dense", OptimizerConfig(name="adam", lr=0.01)),
        ("imp", OptimizerConfig(name="adamw", lr=0.01)),
        ("dense", OptimizerConfig(name="adadelta", lr=0.5)),
        ("gates", OptimizerConfig()),
    ],
)
def test_optimizers_that_count_do_so_on_the_device(
    name: str,
    optimizer: OptimizerConfig,
    tmp_path: Path,
    graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counting on the device rounds differently from the host, so both trainings count there."""
    with monkeypatch.context() as patch:
        patch.setattr(replay, "WARM", 10**9)
        rows = train(job(name, True, optimizer=optimizer), tmp_path / "plain")
    assert graphs.replayed == 0
    again = train(job(name, True, optimizer=optimizer), tmp_path / "noted")
    expect_same(rows, again, tmp_path)
    assert graphs.replayed == (35 if name == "imp" else 20)


@pytest.mark.parametrize("name", ["dhspg", "hesso", "hesso_cric"])
def test_rows_on_adam_are_stepped_as_ever(name: str, tmp_path: Path, graphs: Graphs) -> None:
    """Their Adam counts steps in Python, so no step is replayed."""
    assert compare(name, tmp_path, graphs, optimizer=OptimizerConfig(name="adam", lr=0.01)) == 0


@pytest.mark.parametrize("name", ["dense", "hspg", "hesso"])
@pytest.mark.parametrize("last", [13, 21])
def test_a_stopped_training_goes_on_to_the_same_bits(
    name: str, last: int, tmp_path: Path, graphs: Graphs
) -> None:
    rows = train(job(name, False), tmp_path / "plain")
    every = {"checkpoint_steps": 3}  # also between replays
    with pytest.raises(Stopped):
        train(job(name, True, Batches(last), **every), tmp_path / "noted")
    again = train(job(name, True, **every), tmp_path / "noted")
    expect_same(rows, again, tmp_path)
    assert graphs.replayed > 8


def cuda(made: Job) -> Job:
    """The same job on a GPU."""
    device = torch.device("cuda")

    class Moved(EightSteps):
        def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in super().epoch(epoch, start_step):
                yield x.to(device), y.to(device)

    validation = [(x.to(device), y.to(device)) for x, y in made.validation or ()]
    model = made.model.to(device)
    return replace(
        made, model=model, device=device, train=Moved(last_size=5), validation=validation
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_replays_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real graph, against ordinary steps of the same kind."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "WARM", 10**9)
        rows = train(cuda(job(name, True)), tmp_path / "plain")
    again = train(cuda(job(name, True)), tmp_path / "noted")
    expect_same(rows, again, tmp_path)
