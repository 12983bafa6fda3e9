"""The curve of a training: one row per epoch, for the record and the observer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.training.loop.job import SECONDS, Observer


class Curve:
    """Per epoch "epoch", "step" (optimizer steps done by its end), "phase" and "values"."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.rows: list[dict[str, Any]] = []

    def add(
        self, epoch: int, step: int, phase: str, values: Mapping[str, float], seconds: float
    ) -> None:
        """Add the row of the epoch that just ended."""
        row = {"epoch": epoch, "step": step, "phase": phase, "values": dict(values)}
        self.rows.append(row)
        self.observer.metrics({**values, SECONDS: seconds}, epoch=epoch, step=step)

    def resume(self, rows: Sequence[Mapping[str, Any]], offset: int, anew: bool) -> None:
        """Continue after `rows`; the observer's events ended at `offset`.

        Args:
            anew: the rows are those of a shorter training that this one extends. It has a run of
                its own, so this observer is told all rows again.
        """
        self.rows = [dict(row) for row in rows]
        if anew:
            self.observer.begin()
        if anew or self.observer.begin(offset):
            for row in self.rows:
                self.observer.metrics(row["values"], epoch=row["epoch"], step=row["step"])
