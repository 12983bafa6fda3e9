"""Question answering in the loop: one fit that learns, resumes and accumulates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.loaders import make_eval_batches, make_train_batches
from pipeline.data.prepared import Prepared
from pipeline.registry import build_model
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job, Silent
from pipeline.training.method import MethodBase
from pipeline.training.recipe import Recipe
from pipeline.training.tasks.question_answering import QuestionAnswering
from pipeline.training.tasks.task import parts
from pipeline.units.groups import Units
from tests.squad_world import TINY

TASK = QuestionAnswering()


def job(prepared: Prepared, **recipe) -> Job:
    torch.manual_seed(0)
    given = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_fraction": 0.1},
        "clip_norm": 1.0,
    }
    model = build_model("bert", "encoder_qa", prepared.info, {**TINY, "freeze_embeddings": True})
    return Job(
        model=model,
        units=Units((), ()),
        method=MethodBase(),
        task=TASK,
        recipe=Recipe.model_validate({**given, **recipe}),
        train=make_train_batches(prepared, batch_size=given["batch_size"], seed=0),
        validation=make_eval_batches(prepared, prepared.validation(), batch_size=64),
        seed=0,
        device=torch.device("cpu"),
        fresh=lambda _: clone_state(model),
    )


class Killed(Exception):
    """Stops a training in the middle."""


class Dying:
    """Batches that end with the process."""

    def __init__(self, inner, after: int) -> None:
        self.inner, self.left = inner, after

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, epoch: int, start_step: int = 0):
        for batch in self.inner.epoch(epoch, start_step):
            if not self.left:
                raise Killed
            self.left -= 1
            yield batch


def test_killed_inside_an_epoch_a_training_ends_with_the_same_bits(prepared, tmp_path):
    whole = job(prepared, checkpoint_steps=2)
    fit(whole, CheckpointFolder(tmp_path / "a", "x"), Silent())
    half = job(prepared, checkpoint_steps=2)
    broken = Job(**{**half.__dict__, "train": Dying(half.train, len(half.train) + 3)})
    with pytest.raises(Killed):
        fit(broken, CheckpointFolder(tmp_path / "b", "x"), Silent())
    again = job(prepared, checkpoint_steps=2)
    fit(again, CheckpointFolder(tmp_path / "b", "x"), Silent())
    for (name, a), b in zip(
        whole.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_accumulated_parts_make_the_step_of_the_whole_batch(prepared, tmp_path):
    states = []
    for count in (1, 3):
        one = job(prepared, epochs=1, accumulation=count, optimizer={"name": "sgd", "lr": 0.1})
        for module in one.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        fit(one, CheckpointFolder(tmp_path / str(count), "x"), Silent())
        states.append(one.model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4)
    batch = next(job(prepared).train.epoch(0))
    assert [len(p[0]) for p in parts(batch, 3)] == [6, 6, 4]


def test_a_tiny_encoder_learns_and_its_embeddings_stay(prepared, tmp_path):
    one = job(prepared, epochs=20)
    before = clone_state(one.model)
    first = TASK.scores(one.model, one.validation)
    fit(one, CheckpointFolder(tmp_path / "c", "x"), Silent())
    last = TASK.scores(one.model, one.validation)
    assert last["loss"] < 0.8 * first["loss"]
    assert last["f1"] > first["f1"] + 10
    after = one.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if "embeddings" in name}


def test_bf16_trains_too(prepared, tmp_path):
    curve = fit(job(prepared, precision="bf16"), CheckpointFolder(tmp_path / "d", "x"), Silent())
    assert np.isfinite(curve[-1]["values"]["train/loss"])
    assert {"validation/exact_match", "validation/f1", "train/span"} <= set(curve[-1]["values"])


def test_the_linear_schedule_moves_at_every_step(prepared, tmp_path):
    seen = []

    class Watching(MethodBase):
        def after_step(self, model, at):
            seen.append(self.rates.param_groups[0]["lr"])

        def optimizer(self, model, phase, recipe):
            self.rates = super().optimizer(model, phase, recipe)
            return self.rates

    given = job(prepared, optimizer={"name": "adamw", "lr": 1.0}, clip_norm=1e-6)
    watched = Job(**{**given.__dict__, "method": Watching()})
    fit(watched, CheckpointFolder(tmp_path / "e", "x"), Silent())
    total = 2 * len(given.train)
    wanted = [(i / total) / 0.1 if i / total < 0.1 else (1 - i / total) / 0.9 for i in range(total)]
    assert seen == pytest.approx(wanted)
