"""Every method with an average of the weights: training is unchanged, the average prunable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.files import load_tree
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job, Silent
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import apply_plan
from tests.conformance.test_methods import METHODS, RECIPE, Batches, StopBefore, Stopped, make_job
from tests.pipeline.training.toy import same

AVERAGED = RECIPE.model_copy(update={"ema_decay": 0.5, "checkpoint_steps": 1})


def averaged(name: str, folder: Path, batches: Batches) -> tuple[Job, dict[str, Any]]:
    made = replace(make_job(name, batches), recipe=AVERAGED)
    fit(made, CheckpointFolder(folder, name), Silent())
    return made, load_tree(folder / "snapshots" / "ema.safetensors")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_average(name: str, tmp_path: Path) -> None:
    plain = make_job(name, Batches())
    fit(plain, CheckpointFolder(tmp_path / "plain", name), Silent())
    made, state = averaged(name, tmp_path / "averaged", Batches())
    assert same(made.model, plain.model), "training does not notice"
    with pytest.raises(Stopped):
        averaged(name, tmp_path / "killed", StopBefore(2))
    _, again = averaged(name, tmp_path / "killed", Batches())
    assert all(torch.equal(again["model"][k], v) for k, v in state["model"].items())
    plan = made.method.plan()
    if plan is not None and plan.granularity is Granularity.UNSTRUCTURED:
        assert not any(state["model"][n][~mask].any() for n, mask in plan.keep.items())
    made.model.load_state_dict(state["model"])
    scores = made.method.saliency(made.model, made.units)
    target = Target(rule="fraction", value=0.3)
    cut: PruningPlan = select(scores, made.method.granularity, target)
    made.method.release(made.model)
    apply_plan(cut, made.model, made.units)
    assert torch.isfinite(made.model(torch.randn(2, 1, 8, 8))).all()
