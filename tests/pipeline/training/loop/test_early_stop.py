"""Budgets in optimizer steps, and the state with the lowest validation loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pipeline.files import load_tree, read_json
from pipeline.training.loop.early_stop import Evaluations
from pipeline.training.method import MethodBase
from pipeline.training.phases import Phase
from pipeline.training.recipe import Recipe
from tests.pipeline.training.toy import RECIPE, KillAt, Killed, job, network, same, train


class TwoRounds(MethodBase):
    """Two rounds over the whole schedule; the second starts over."""

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        later = Phase("round-1", recipe.epochs, "init", keep=True)
        return (Phase("round-0", recipe.epochs, keep=True), later)


def recipe(**changes: object) -> Recipe:
    return Recipe(**{**RECIPE.model_dump(), "rewind_epoch": 0, **changes})


def test_a_budget_of_steps_ends_inside_an_epoch(tmp_path: Path) -> None:
    counted = KillAt(99)
    _, _, curve = train(tmp_path, job(TwoRounds(), recipe(epochs=2, steps=5), train=counted))
    assert [row["step"] for row in curve] == [3, 5, 8, 10]
    assert 99 - counted.left == 10


def test_whole_epochs_of_steps_change_nothing(tmp_path: Path) -> None:
    by_epochs, _, curve = train(tmp_path / "a", job(recipe=recipe(epochs=2)))
    by_steps, _, same_curve = train(tmp_path / "b", job(recipe=recipe(epochs=2, steps=6)))
    assert same(by_epochs, by_steps)
    assert same_curve == curve


@pytest.mark.parametrize("steps", [3, 7])
def test_epochs_that_do_not_fit_the_steps_are_refused(tmp_path: Path, steps: int) -> None:
    wanted = -(-steps // 3)
    with pytest.raises(
        ValueError, match=rf"takes {wanted} epochs of 3.*set train.epochs: {wanted}"
    ):
        train(tmp_path, job(recipe=recipe(epochs=2, steps=steps)))


def test_the_snapshot_is_the_state_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    made = job(TwoRounds(), recipe(epochs=3, evaluate_steps=2))
    _, seen, _ = train(tmp_path, made)
    rows = read_json(tmp_path / "evaluations.json")
    assert [(row["phase"], row["phase_step"]) for row in rows] == [
        (f"round-{k}", step) for k in (0, 1) for step in (2, 4, 6, 8)
    ]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 11, 13, 15, 17]
    assert [row["epochs"] for row in rows] == [0, 1, 2, 2, 3, 4, 5, 5]
    for name, candidates in (
        ("early-stop", rows), ("early-stop-round-0", rows[:4]), ("early-stop-round-1", rows[4:])
    ):  # fmt: skip
        tree = load_tree(tmp_path / f"snapshots/{name}.safetensors")
        assert tree["early_stop"] == min(candidates, key=lambda r: r["validation"]["loss"])
        model = network()
        model.load_state_dict(tree["model"])
        scores = made.task.scores(model, made.validation)
        assert scores == tree["early_stop"]["validation"]
    grid = [step for _, step, values in seen.rows if "evaluation/loss" in values]
    assert grid == [row["step"] for row in rows]


@pytest.mark.parametrize("killed", [3, 5, 8, 10, 13])
def test_resume_inside_an_epoch_is_bit_exact(tmp_path: Path, killed: int) -> None:
    asked = recipe(epochs=3, steps=8, evaluate_steps=2, checkpoint_steps=2)
    whole, _, curve = train(tmp_path / "a", job(TwoRounds(), asked))
    with pytest.raises(Killed):
        train(tmp_path / "b", job(TwoRounds(), asked, train=KillAt(killed)))
    resumed, _, again = train(tmp_path / "b", job(TwoRounds(), asked))
    assert same(whole, resumed)
    assert again == curve
    for name in ("early-stop", "early-stop-round-0", "early-stop-round-1"):
        one, other = (load_tree(tmp_path / f / f"snapshots/{name}.safetensors") for f in ("a", "b"))
        assert one["early_stop"] == other["early_stop"]
        assert all(torch.equal(v, other["model"][k]) for k, v in one["model"].items())
    texts = [(tmp_path / f / "evaluations.json").read_text() for f in ("a", "b")]
    assert texts[0] == texts[1]


def test_evaluating_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    plain, _, curve = train(tmp_path / "a", job())
    watched, _, same_curve = train(
        tmp_path / "b", job(recipe=recipe(rewind_epoch=1, evaluate_steps=2))
    )
    assert same(plain, watched)
    assert curve == same_curve


def test_of_equal_losses_the_first_counts() -> None:
    found = Evaluations(1)
    phase = Phase("train", 3)
    row = {"phase": "train", "phase_step": 1, "validation": {"loss": 0.5}}
    assert found.add(row, phase) == ["early-stop"]
    assert found.add(row | {"phase_step": 2}, phase) == []
    assert found.add(row | {"validation": {"loss": 0.4}}, phase) == ["early-stop"]


def test_a_grid_needs_a_validation_split(tmp_path: Path) -> None:
    made = job(recipe=recipe(evaluate_steps=2), validation=None)
    with pytest.raises(ValueError, match="evaluate_steps: 2 needs a validation split"):
        train(tmp_path, made)


def test_records_name_neither_setting_at_its_default() -> None:
    assert not {"steps", "evaluate_steps"} & RECIPE.model_dump().keys()
