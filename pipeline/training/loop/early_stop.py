"""Validation every `evaluate_steps` optimizer steps, and the state with the lowest loss.

Nothing stops early: the training runs to its end, and the early-stop iteration is found afterwards
(Frankle & Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, section 2). The state at that
iteration is snapshotted on the way, so that `evaluate` can measure its test accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.training.phases import Phase

EARLY_STOP = "early-stop"


def names(evaluate_steps: int, phases: Sequence[Phase]) -> list[str]:
    """Names of the early-stop states: the lowest loss of all, and of every phase with `keep`."""
    if not evaluate_steps:
        return []
    return [EARLY_STOP, *(f"{EARLY_STOP}-{p.name}" for p in phases if p.keep)]


class Evaluations:
    """Validation scores every `every` optimizer steps of a phase; 0 = never.

    Attributes:
        rows: in order; each holds "phase", "phase_step" and "step" (optimizer steps done in the
            phase and in the whole training), "epochs" (whole epochs done) and "validation".
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[dict[str, Any]] = []

    def due(self, phase_step: int) -> bool:
        """Whether to evaluate the network after `phase_step` steps of the phase."""
        return self.every > 0 and phase_step % self.every == 0

    def add(self, row: Mapping[str, Any], phase: Phase) -> list[str]:
        """Add an evaluation; returns the names of the states for which its loss is the lowest so
        far. Ties go to the earlier one."""
        before, self.rows = self.rows, [*self.rows, dict(row)]
        loss = row["validation"]["loss"]
        found = [(EARLY_STOP, before)]
        if phase.keep:
            found.append((f"{EARLY_STOP}-{phase.name}", list(_of(before, phase.name))))
        return [name for name, rows in found if all(loss < r["validation"]["loss"] for r in rows)]


def _of(rows: Sequence[dict[str, Any]], phase: str) -> Iterator[dict[str, Any]]:
    return (row for row in rows if row["phase"] == phase)
