"""Every registered method in two processes: the same weights, saliency and plan in both.

The loop itself compares weights and plans at the start of every phase and after every epoch, so a
method that differs between processes stops with a `TeamError` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.batches import WHOLE, Part
from pipeline.files import load_tree, save_tree
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.distributed import Team
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Silent
from tests.conformance.test_methods import METHODS, Batches, make_job
from tests.team import together


class Parted(Batches):
    """The batches of the suite, divided between processes as the loaders do."""

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Any]:
        for x, y in super().epoch(epoch, start_step):
            first, end = part.of(len(y))
            yield x[first:end], y[first:end]


def train_all(team: Team, folder: Path) -> None:
    """Train with every method and write the results to `folder`."""
    for name in METHODS:
        made = replace(make_job(name, Parted()), team=team)
        checkpoints = CheckpointFolder(folder / name, "x", writes=team.first)
        fit(made, checkpoints, Silent())
        plan = made.method.plan()
        left = {
            "model": made.model.state_dict(),
            "saliency": made.method.saliency(made.model, made.units),
            "plan": "none" if plan is None else plan.digest(),
        }
        save_tree(folder / f"{name}-{team.rank}", left)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("team")
    together("tests.conformance.test_team:train_all", path)
    return path


@pytest.mark.parametrize("name", METHODS)
def test_both_processes_hold_the_same(name: str, folder: Path) -> None:
    one, other = (load_tree(folder / f"{name}-{rank}") for rank in range(2))
    assert one["plan"] == other["plan"]
    for what in ("model", "saliency"):
        assert one[what].keys() == other[what].keys()
        assert all(torch.equal(v, other[what][k]) for k, v in one[what].items())
    initial = load_tree(folder / name / "snapshots" / "init.safetensors")["model"]
    assert any(not torch.equal(v, initial[k]) for k, v in one["model"].items())
