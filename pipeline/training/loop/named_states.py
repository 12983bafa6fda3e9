"""States worth keeping: after chosen epochs, the best so far by validation score, the average.

Which state a name stands for follows from the curve and the recipe alone, so a training that was
killed and resumed keeps the same ones. An epoch is kept once, whatever number of names it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.training.loop import early_stop
from pipeline.training.options.ema import EMA
from pipeline.training.phases import Phase
from pipeline.training.recipe import Recipe

BEST = "best"
Curve = Sequence[Mapping[str, Any]]


def names(recipe: Recipe, phases: Sequence[Phase]) -> list[str]:
    """Of the states that a training may keep beside its phases; one that stops early has fewer."""
    found = [f"epoch-{e}" for e in recipe.keep_epochs]
    if recipe.keep_best:
        found += [BEST, *(f"{BEST}-{e}" for e in recipe.keep_epochs)]
        found += [f"{BEST}-{p.name}" for p in phases if p.keep]
    found += early_stop.names(recipe.evaluate_steps, phases)
    return found + [EMA] * bool(recipe.ema_decay)


def check(recipe: Recipe, phases: Sequence[Phase], validated: bool) -> None:
    """Before any work: can this training keep what its recipe asks for?

    Args:
        validated: there is a validation split.

    Raises:
        ValueError: no; begins with the key of the recipe.
    """
    epochs = sum(p.epochs for p in phases)
    beyond = [e for e in recipe.keep_epochs if e > epochs]
    if beyond:
        raise ValueError(f"keep_epochs: {beyond[0]} is beyond the end, epoch {epochs}")
    chooses = "keep_best: true" if recipe.keep_best else ""
    if recipe.evaluate_steps:
        chooses = f"evaluate_steps: {recipe.evaluate_steps}"
    if chooses and not validated:
        raise ValueError(
            f"{chooses} needs a validation split to choose by, never the test set; "
            "set data.val_size"
        )


def kept(recipe: Recipe, phases: Sequence[Phase], curve: Curve, score: str) -> dict[str, int]:
    """Which states to keep after the epochs of `curve`: by name, how many epochs were trained.

    Args:
        score: what "best" goes by, a value of the curve, more is better; of equals the earliest.
    """
    found = {f"epoch-{e}": e for e in recipe.keep_epochs if e <= len(curve)}
    if recipe.keep_best:
        for name, rows in _candidates(recipe, phases, curve):
            if rows:
                best = max(rows, key=lambda row: row["values"][score])
                found[name] = int(best["epoch"]) + 1
    return found


def _candidates(
    recipe: Recipe, phases: Sequence[Phase], curve: Curve
) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """What a best state is the best of."""
    yield BEST, list(curve)
    for epochs in recipe.keep_epochs:
        yield f"{BEST}-{epochs}", list(curve[:epochs]) if epochs <= len(curve) else []
    for phase in phases:
        if phase.keep:
            yield f"{BEST}-{phase.name}", [row for row in curve if row["phase"] == phase.name]
