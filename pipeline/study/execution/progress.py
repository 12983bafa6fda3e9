"""Progress of a training on the terminal: a bar with the time left, or one line per epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

from pipeline.data.batches import WHOLE, Part
from pipeline.study.execution.runtime import log
from pipeline.study.execution.stopping import StopRequest
from pipeline.training.loop.job import SECONDS, Observer, TrainBatches

SHOWN = ("train/loss", "validation/loss", "validation/top1", "validation/f1", "lr")


class Progress:
    """An observer that displays events and passes them on, and batches that move its bar.

    Args:
        inner: the observer that gets every event.
        batches: batches of the training; iterate over `self` instead.
        epochs: number of epochs over all phases.
        terminal: draw a bar; by default only if stderr is a terminal.
    """

    def __init__(
        self, inner: Observer, batches: TrainBatches, epochs: int, terminal: bool | None = None
    ) -> None:
        from tqdm import tqdm

        self._inner, self._batches, self._epochs = inner, batches, epochs
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        total = epochs * len(batches)
        self._bar = tqdm(total=total, unit="step", disable=not self._terminal, leave=False)
        self._began, self._first = monotonic(), -1
        self._stop, self._saved = StopRequest(), True

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Any]:
        """The batches of the epoch, each moving the bar.

        Raises:
            SystemExit: a stop was requested, and a checkpoint holds everything so far.
        """
        self._bar.n = epoch * len(self) + start_step
        for batch in self._batches.epoch(epoch, start_step, part):
            if self._saved:
                self._stop.obey()
            self._saved = False
            yield batch
            self._bar.update()

    def metrics(self, values: Mapping[str, float], *, epoch: int, step: int) -> None:
        """Pass on, then show."""
        self._inner.metrics(values, epoch=epoch, step=step)
        if SECONDS not in values:
            return  # an epoch of the shorter training that this one extends
        text = "  ".join(f"{k} {values[k]:.4g}" for k in SHOWN if k in values)
        if self._terminal:
            self._bar.set_postfix_str(f"epoch {epoch + 1}/{self._epochs}  {text}")
            return
        self._first = epoch if self._first < 0 else self._first
        done = epoch + 1 - self._first
        left = (monotonic() - self._began) / done * (self._epochs - epoch - 1)
        log.info("epoch %d/%d  %s  %.0f s left", epoch + 1, self._epochs, text, left)

    def offset(self) -> int:
        """Position in the event file, to be stored in a checkpoint."""
        self._saved = True
        return self._inner.offset()

    def begin(self, offset: int = 0) -> bool:
        if offset:
            log.info("resumed from the last checkpoint")
        return self._inner.begin(offset)

    def close(self) -> None:
        """Remove the bar and restore the previous SIGTERM handler."""
        self._bar.close()
        self._stop.close()
