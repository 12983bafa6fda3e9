"""Named states of a training or retraining, as its record holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

Scores = Mapping[str, float]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class KeptState:
    """A named state of a training, with its validation scores (none without a validation split).

    Attributes:
        epochs: whole epochs before it.
        step, phase_step: only for an early-stop state: optimizer steps so far in the whole training
            and in its phase (the early-stop iteration).
    """

    __pydantic_config__: ClassVar = _STRICT
    epochs: int
    validation: Scores
    step: int | None = None
    phase_step: int | None = None


@dataclass(frozen=True)
class EarlyStop:
    """The state of the lowest validation loss of a retraining, or of the phase of a training.

    Attributes:
        iteration: optimizer steps of the retraining or phase until then.
        epochs: whole epochs before it.
        validation, test: its scores.
    """

    __pydantic_config__: ClassVar = _STRICT
    iteration: int
    epochs: int
    validation: Scores
    test: Scores
