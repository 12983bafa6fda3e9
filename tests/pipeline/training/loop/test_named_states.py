"""Named states: chosen epochs and the best so far, also after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.files import load_tree
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.loop.named_states import check, kept, names
from pipeline.training.method import MethodBase
from pipeline.training.phases import EpochStats, Phase
from pipeline.training.recipe import Recipe
from tests.pipeline.training.toy import RECIPE, KillAt, Killed, Rounds, job, train

KEEPING = RECIPE.model_copy(update={"keep_epochs": (1, 3), "keep_best": True})
ONE = (Phase("train", 9),)
SCORE = "validation/top1"


def curve_of(scores: list[float], phase: str = "train") -> list[dict[str, Any]]:
    return [{"epoch": e, "phase": phase, "values": {SCORE: s}} for e, s in enumerate(scores)]


def asked(epochs: tuple[int, ...] = (), best: bool = False) -> Recipe:
    return Recipe(epochs=9, keep_epochs=epochs, keep_best=best)


def test_best_is_the_earliest_of_equals_and_best_so_far_does_not_look_ahead() -> None:
    curve = curve_of([50.0, 70.0, 60.0, 70.0, 80.0])
    found = kept(asked((1, 3, 4), best=True), ONE, curve, SCORE)
    exact = {"epoch-1": 1, "epoch-3": 3, "epoch-4": 4}
    assert found == {**exact, "best": 5, "best-1": 1, "best-3": 2, "best-4": 2}


def test_a_name_stands_for_nothing_before_its_epoch() -> None:
    found = kept(asked((1, 3), best=True), ONE, curve_of([50.0, 70.0]), SCORE)
    assert found == {"epoch-1": 1, "best": 2, "best-1": 1}
    assert kept(asked((1,), best=True), ONE, [], SCORE) == {}


def test_a_kept_phase_has_a_best_of_its_own() -> None:
    phases = (Phase("round-0", 2, keep=True), Phase("round-1", 2, keep=True), Phase("rest", 1))
    rows = curve_of([50.0, 40.0], "round-0") + curve_of([10.0, 20.0], "round-1")
    curve = [row | {"epoch": e} for e, row in enumerate(rows)]
    found = kept(asked(best=True), phases, curve, SCORE)
    assert found == {"best": 1, "best-round-0": 1, "best-round-1": 4}
    assert names(asked(best=True), phases) == ["best", "best-round-0", "best-round-1"]


@given(
    st.lists(st.sampled_from([10.0, 20.0, 30.0]), min_size=1, max_size=9),
    st.sets(st.integers(1, 9)),
)
def test_what_is_needed_later_was_kept_when_it_was_new(scores, epochs) -> None:
    """An epoch that a name refers to at any time was needed at its own end and ever since."""
    recipe, curve = asked(tuple(sorted(epochs)), best=True), curve_of(scores)
    at_hand: set[int] = set()
    for end in range(1, len(curve) + 1):
        wanted = set(kept(recipe, ONE, curve[:end], SCORE).values())
        assert wanted <= at_hand | {end}
        at_hand = wanted
    assert set(kept(recipe, ONE, curve, SCORE)) <= set(names(recipe, ONE))


@pytest.mark.parametrize(
    ("recipe", "validated", "message"),
    [
        (asked((3, 10)), True, "keep_epochs: 10 is beyond the end, epoch 9"),
        (asked(best=True), False, "keep_best: true needs a validation split"),
    ],
)
def test_what_cannot_be_kept_is_refused(recipe, validated, message) -> None:
    with pytest.raises(ValueError, match=message):
        check(recipe, ONE, validated)


def test_the_loop_refuses_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_best"):
        train(tmp_path, job(recipe=KEEPING, validation=None))
    assert not CheckpointFolder(tmp_path, "x").snapshots()


class Watched(MethodBase):
    """Remembers the weights at the end of every epoch, and chooses the validation scores."""

    def __init__(self, model: nn.Module, ends: dict[int, dict[str, Tensor]]) -> None:
        self.model, self.ends = model, ends

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        self.ends[stats.epoch + 1] = clone_state(model)
        return False


def snapshots(folder: Path) -> dict[str, dict[str, Tensor]]:
    found = CheckpointFolder(folder, "x").snapshots()
    return {name: load_tree(path)["model"] for name, path in found.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_loop_keeps_the_weights_of_those_epochs(tmp_path: Path) -> None:
    made, ends = job(recipe=KEEPING), dict[int, dict[str, Tensor]]()
    made = job(Watched(made.model, ends), recipe=KEEPING)
    _, _, curve = train(tmp_path, made)
    found = snapshots(tmp_path)
    assert set(found) == {"init", "rewind", "epoch-1", "epoch-3", "best", "best-1", "best-3"}
    for name, epochs in kept(KEEPING, ONE, curve, SCORE).items():
        assert equal(found[name], ends[epochs]), name
    best = max(row["values"][SCORE] for row in curve)
    assert curve[kept(KEEPING, ONE, curve, SCORE)["best"] - 1]["values"][SCORE] == best
    left = {int(p.stem) for p in (tmp_path / "epochs").iterdir()}
    assert left == set(kept(KEEPING, ONE, curve, SCORE).values()), "superfluous epochs go"


@pytest.mark.parametrize("method", [MethodBase, Rounds])
def test_killed_at_every_step_the_same_states_are_kept(tmp_path: Path, method: Any) -> None:
    _, _, curve = train(tmp_path / "whole", job(method(), recipe=KEEPING))
    wanted = snapshots(tmp_path / "whole")
    for step in range(1, 12):
        folder = tmp_path / str(step)
        with pytest.raises(Killed):
            train(folder, job(method(), recipe=KEEPING, train=KillAt(step)))
        assert train(folder, job(method(), recipe=KEEPING))[2] == curve
        again = snapshots(folder)
        assert again.keys() == wanted.keys()
        assert all(equal(again[k], wanted[k]) for k in wanted), f"killed before step {step}"


def test_a_kill_between_keeping_and_the_checkpoint_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", job(recipe=KEEPING))
    saved, calls = CheckpointFolder.save, [0]

    def dies(self: CheckpointFolder, tree: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise Killed
        saved(self, tree)

    monkeypatch.setattr(CheckpointFolder, "save", dies)
    with pytest.raises(Killed):
        train(tmp_path / "cut", job(recipe=KEEPING))
    train(tmp_path / "cut", job(recipe=KEEPING))
    one, other = snapshots(tmp_path / "whole"), snapshots(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(equal(one[k], other[k]) for k in one)


def test_keeping_changes_nothing_else(tmp_path: Path) -> None:
    plain, keeping = (
        train(tmp_path / n, job(recipe=r)) for n, r in (("a", RECIPE), ("b", KEEPING))
    )
    assert plain[2] == keeping[2]
    assert equal(clone_state(plain[0]), clone_state(keeping[0]))


def test_unasked_settings_leave_no_trace_in_a_record() -> None:
    assert not {"keep_epochs", "keep_best"} & RECIPE.model_dump().keys()
    told = KEEPING.model_dump(mode="json")
    assert (told["keep_epochs"], told["keep_best"]) == ([1, 3], True)
    assert Recipe.model_validate(told) == KEEPING
    with pytest.raises(ValueError, match="keep_epochs must increase"):
        Recipe(epochs=5, keep_epochs=(3, 1))
