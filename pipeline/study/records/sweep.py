"""The record of a sweep: one training, pruned one-shot to many sparsities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import ConfigDict

Scores = Mapping[str, float]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class SweepPoint:
    """One-shot pruning to one sparsity, no retraining.

    Attributes:
        ranked, scope: what was ranked together, and how far, as in params.yaml.
        sparsity: the requested fraction of the units that were ranked.
        recalibrated: BatchNorm statistics were recomputed on training data.
        units, units_kept: what the plan speaks of, and what it keeps.
    """

    __pydantic_config__: ClassVar = _STRICT
    ranked: Literal["weights", "all", "all_strict", "channels"]
    scope: Literal["global", "layer"]
    sparsity: float
    recalibrated: bool
    scores: Scores
    units: int
    units_kept: int
    params_kept: int
    params_nonzero: int
    macs_kept: int
    macs_nonzero: int
    plan_digest: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"sparsity is {self.sparsity}, not in [0, 1)")
        if not 0 <= self.units_kept <= self.units:
            raise ValueError(f"units_kept is {self.units_kept}, not in [0, {self.units}]")


@dataclass(frozen=True)
class Histogram:
    """Counts of |w| > 0: `counts[i]` belong to bin `first + i`, the bins around them are empty."""

    __pydantic_config__: ClassVar = _STRICT
    zeros: int
    first: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class WeightDistribution:
    """How large the parameters of a trained network are.

    Attributes:
        thresholds, above: how many entries of all parameters exceed each, largest threshold first.
        edges: of the histograms; bin i holds edges[i-1] < |w| <= edges[i], the last the rest.
        layers: the histogram of every parameter by name, and of all of them as "all".
    """

    __pydantic_config__: ClassVar = _STRICT
    thresholds: tuple[float, ...]
    above: tuple[int, ...]
    edges: tuple[float, ...]
    layers: Mapping[str, Histogram]

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.above) or list(self.above) != sorted(self.above):
            raise ValueError("above: one count per threshold, none smaller than the one before")


@dataclass(frozen=True)
class SweepRecord:
    """One training pruned one-shot to every sparsity of `sweep.sparsities`.

    `weights` is what the pruning finds; a record of one point alone (`leaves`) leaves it out.
    """

    __pydantic_config__: ClassVar = _STRICT
    training: str
    training_sha: str
    model: str
    method: str
    data: str
    seed: int
    params_dense: int
    macs_dense: int
    input_shape: tuple[int, ...]
    dense: Scores
    weights: WeightDistribution | None = None
    points: tuple[SweepPoint, ...] = ()
    kind: Literal["sweep"] = "sweep"
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        where = [(p.ranked, p.scope, p.sparsity, p.recalibrated) for p in self.points]
        if len(set(where)) < len(where):
            raise ValueError("points: the same protocol, sparsity and recalibration twice")

    def leaves(self) -> tuple[SweepRecord, ...]:
        """One record per point: its hash does not change when other sparsities are added."""
        return tuple(replace(self, weights=None, points=(point,)) for point in self.points)
