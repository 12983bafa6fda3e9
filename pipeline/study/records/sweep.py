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
        ranked, scope: which units were ranked together, as in params.yaml.
        sparsity: the requested fraction of the ranked units.
        recalibrated: whether BatchNorm statistics were recomputed on training data.
        units, units_kept: number of units in the plan, and how many it keeps.
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
    """Counts of |w| > 0. `counts[i]` belongs to bin `first + i`; all other bins are empty."""

    __pydantic_config__: ClassVar = _STRICT
    zeros: int
    first: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class WeightDistribution:
    """The distribution of the parameter magnitudes of a trained network.

    Attributes:
        thresholds, above: number of entries of all parameters that exceed each threshold, largest
            threshold first.
        edges: bin edges; bin i counts edges[i-1] < |w| <= edges[i], the last bin the rest.
        layers: the histogram of every parameter by name, and of all together as "all".
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

    `weights` is the distribution before pruning; a record of one point (`leaves`) omits it.
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
        """One record per point, whose hash does not change when other sparsities are added."""
        return tuple(replace(self, weights=None, points=(point,)) for point in self.points)
