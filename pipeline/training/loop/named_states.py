"""Named states: after chosen epochs, the best by validation score, the average.

The curve and the recipe alone determine which state a name refers to, so a resumed training
names the same states. An epoch is stored once, however many names it has.
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
    """Names of the states that a training may snapshot besides its phases. If phases stop early,
    there are fewer."""
    found = [f"epoch-{e}" for e in recipe.keep_epochs]
    if recipe.keep_best:
        found += [BEST, *(f"{BEST}-{e}" for e in recipe.keep_epochs)]
        found += [f"{BEST}-{p.name}" for p in phases if p.keep]
    found += early_stop.names(recipe.evaluate_steps, phases)
    return found + [EMA] * bool(recipe.ema_decay)


def check(recipe: Recipe, phases: Sequence[Phase], validated: bool) -> None:
    """Refuse, before any work, a recipe that names a state this training cannot have.

    Args:
        validated: whether there is a validation split.

    Raises:
        ValueError: the message begins with the key of the recipe.
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
    """The number of epochs before each named state, given the curve so far.

    Args:
        score: the value of the curve that "best" maximises; ties go to the earliest epoch.
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
    """For each best state, its name and the rows it is chosen from."""
    yield BEST, list(curve)
    for epochs in recipe.keep_epochs:
        yield f"{BEST}-{epochs}", list(curve[:epochs]) if epochs <= len(curve) else []
    for phase in phases:
        if phase.keep:
            yield f"{BEST}-{phase.name}", [row for row in curve if row["phase"] == phase.name]
