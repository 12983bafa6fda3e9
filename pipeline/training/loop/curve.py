"""The curve of a training, for the record and for the observer."""

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
        """Go on behind `rows`, where the observer stood at `offset`.

        Args:
            anew: they are of a shorter training, which has a run of its own; this one's observer
                hears of its epochs for the first time.
        """
        self.rows = [dict(row) for row in rows]
        if anew:
            self.observer.begin()
        if anew or self.observer.begin(offset):
            for row in self.rows:
                self.observer.metrics(row["values"], epoch=row["epoch"], step=row["step"])
