"""Phases that start at random weights: each gets its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.training.loop.checkpoint import State, clone_state
from pipeline.training.method import MethodBase
from pipeline.training.phases import Phase
from pipeline.training.recipe import Recipe
from tests.pipeline.training import toy


class Rounds(MethodBase):
    """A dense phase, then two from random weights."""

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        del recipe
        return (Phase("a", 1), Phase("b", 1, "random"), Phase("c", 1, "random"))


def test_every_random_phase_asks_for_its_own_weights(tmp_path: Path) -> None:
    asked: list[int] = []

    def fresh(phase: int) -> State:
        asked.append(phase)
        return clone_state(toy.network(seed=phase))

    toy.train(tmp_path, toy.job(Rounds(), fresh=fresh))
    assert asked == [1, 2]
