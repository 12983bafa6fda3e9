"""Training cost until every named state, against the examples that a real training has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from methods.early_bird import EarlyBird, EarlyBirdConfig
from pipeline.study.execution.running import curve_point
from pipeline.study.records.cost import examples_until, training_cost
from pipeline.study.records.record import TrainRecord
from pipeline.study.records.states import KeptState
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.named_states import kept
from pipeline.training.method import Method
from pipeline.training.recipe import Recipe
from pipeline.units.trace import trace_units
from tests.pipeline.training.toy import RECIPE, Batches, Recorder, Rounds, job


class Ragged(Batches):
    """20 examples an epoch: the last batch has four."""

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for step, (x, y) in enumerate(super().epoch(epoch, start_step), start_step):
            yield (x, y) if step < 2 else (x[:4], y[:4])


class Watched(CheckpointFolder):
    """Remembers how many examples had been seen when a state was written."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        super().__init__(folder, "x")
        self.examples = 0
        self.when: dict[str, int] = {}
        self.epochs: dict[int, int] = {}
        model.register_forward_hook(self._count)

    def _count(self, model: nn.Module, inputs: Any, _output: Any) -> None:
        self.examples += len(inputs[0]) if model.training else 0

    def snapshot(self, name: str, tree: Any) -> None:
        self.when[name] = self.examples
        super().snapshot(name, tree)

    def keep_epoch(self, epochs: int, tree: Any) -> None:
        self.epochs[epochs] = self.examples
        super().keep_epoch(epochs, tree)


def trained(folder: Path, method: Method, recipe: Recipe) -> tuple[TrainRecord, dict[str, int]]:
    """The record of a tiny training, and the examples seen at each of its states."""
    made = job(method, recipe, train=Ragged())
    made = replace(made, units=trace_units(made.model, torch.zeros(2, 6)))
    watched = Watched(folder, made.model)
    rows = fit(made, watched, Recorder())
    named = kept(recipe, method.phases(recipe), rows, "validation/top1")
    record = TrainRecord(
        training="t",
        model="small/mlp",
        model_args={},
        method="m",
        method_params={},
        recipe=recipe.model_dump(mode="json"),
        data="digits",
        seed=0,
        parents={},
        curve=tuple(curve_point(row) for row in rows),
        weights_sha="",
        kept={name: KeptState(e, {}) for name, e in named.items()} or None,
    )
    at = {name: watched.epochs[e] for name, e in named.items()}
    return record, {**watched.when, **at, "final": watched.examples}


@pytest.mark.parametrize("start", ["init", "rewind", "current"])
@pytest.mark.parametrize(
    "rewind", [{"rewind_epoch": 1}, *({"rewind_step": s} for s in (0, 2, 3, 5))]
)
def test_every_state_costs_the_examples_seen_until_it(
    tmp_path: Path, rewind: dict[str, int], start: str
) -> None:
    changes = {"rewind_epoch": 0, "keep_epochs": (1, 3), "keep_best": True, **rewind}
    recipe = RECIPE.model_copy(update=changes)
    record, seen = trained(tmp_path, Rounds(start), recipe)
    assert {"init", "rewind", "round-0", "epoch-1", "epoch-3", "best", "best-1"} <= set(seen)
    assert {state: examples_until(record, state) for state in seen} == seen
    assert training_cost(7, record, "epoch-3") == 3 * 7 * seen["epoch-3"]


def test_a_ticket_costs_the_search_until_it_emerged(tmp_path: Path) -> None:
    config = EarlyBirdConfig(ratios=(0.3, 0.5), length=2, epsilon=1.0, min_epoch=1, stop=False)
    record, seen = trained(tmp_path, EarlyBird(config), RECIPE)
    assert seen["ticket-0.3"] == 40 < seen["final"] == 80
    assert {state: examples_until(record, state) for state in seen} == seen
