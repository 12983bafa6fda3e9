"""The record of a linear path between two trained states of one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class PathEnd:
    """One end of the path: a state of a training. `training_sha` is the hash of its record."""

    __pydantic_config__: ClassVar = _STRICT
    training: str
    at: str
    training_sha: str


@dataclass(frozen=True)
class PathPoint:
    """Scores of (1 - alpha) * one + alpha * other. `recalibrated`: BatchNorm statistics were
    recomputed on training data instead of interpolated."""

    __pydantic_config__: ClassVar = _STRICT
    alpha: float
    recalibrated: bool
    scores: Mapping[str, float]


@dataclass(frozen=True)
class ConnectRecord:
    """Test scores along the straight line between two states.

    Attributes:
        model, method, data, seed: of `one`.
        distance: Euclidean distance of the two states, over all parameters.
    """

    __pydantic_config__: ClassVar = _STRICT
    pair: str
    one: PathEnd
    other: PathEnd
    model: str
    method: str
    data: str
    seed: int
    distance: float
    points: tuple[PathPoint, ...]
    kind: Literal["connect"] = "connect"
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        for recalibrated in (False, True):
            alphas = [p.alpha for p in self.points if p.recalibrated == recalibrated]
            if alphas != sorted(set(alphas)) or alphas[:1] + alphas[-1:] != [0.0, 1.0]:
                raise ValueError(f"points: alpha does not increase from 0 to 1: {alphas}")

    @property
    def training(self) -> str:
        return self.one.training

    def line(self, score: str, recalibrated: bool) -> list[float]:
        """One score along the path."""
        return [p.scores[score] for p in self.points if p.recalibrated == recalibrated]

    def barrier(self, score: str, recalibrated: bool) -> float:
        """How much worse the worst point of the path is than the mean of its ends, in the loss or
        in percentage points of a score. Never negative, since the ends are on the path.

        Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020,
        arXiv:1912.05671, section 2.
        """
        line = self.line(score, recalibrated)
        mean = (line[0] + line[-1]) / 2
        return max(line) - mean if score == "loss" else mean - min(line)
