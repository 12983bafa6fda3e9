"""The shape of params.yaml: every block, every key, every range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.data.config import DataConfig
from pipeline.training.recipe import Recipe, Strict
from pipeline.units.groups import Granularity
from pipeline.units.saliency import NAMES as SALIENCIES
from pipeline.units.selection import Target

StartFrom = Literal["current", "init", "rewind", "random"]


def _known_saliency(name: str) -> str:
    if name not in ("method", *SALIENCIES):
        raise ValueError(f"unknown saliency (known: method, {', '.join(SALIENCIES)})")
    return name


Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]


class ModelChoice(BaseModel):
    """A network of the registry; further keys are the builder's own width arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    family: str
    name: str

    @property
    def args(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Weights(Strict):
    """Weights to start from: a safetensors file, or a torch checkpoint of plain tensors."""

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    prefix: str = ""
    """Stripped from every key, e.g. "module."."""


class TrainingParams(Strict):
    """One line of `trainings`: the expensive part. `train` overrides keys of the common recipe."""

    model: ModelChoice
    method: str
    seed: Annotated[int, Field(ge=0)] = 0
    weights: Weights | None = None
    train: Mapping[str, Any] = {}


class MatchCost(Strict):
    """Epochs such that the retraining costs as many MACs as the recipe's epochs cost dense
    (Scratch-B)."""

    match: Literal["macs"]


class FinetuneParams(Strict):
    """Retraining after pruning; what is absent comes from the common `finetune` block."""

    epochs: Annotated[int, Field(ge=0)] | MatchCost | None = None
    start_from: StartFrom | None = None
    train: Mapping[str, Any] = {}


class FinetuneDefaults(Strict):
    """The common `finetune` block: keys of `train` override those of the training's recipe."""

    epochs: Annotated[int, Field(ge=0)] | MatchCost = 0
    start_from: StartFrom = "current"
    train: Mapping[str, Any] = {}


class PruningParams(Strict):
    """One line of `prunings`: a row of a table."""

    training: str
    at: str = "final"
    granularity: Granularity | None = None
    saliency: Annotated[str, AfterValidator(_known_saliency)] = "method"
    target: Target
    finetune: FinetuneParams = FinetuneParams()


class SweepParams(Strict):
    """One-shot pruning of finished trainings to many sparsities, without retraining."""

    trainings: tuple[str, ...] = ()
    sparsities: tuple[Sparsity, ...] = ()
    scope: Literal["global", "layer"] = "global"
    granularity: Granularity = Granularity.UNSTRUCTURED
    recalibration_batches: Annotated[int, Field(ge=1)] = 50


class EvaluateParams(Strict):
    """How the harness measures: batch size of the scores, and wall-clock latency."""

    batch_size: Annotated[int, Field(ge=1)] = 256
    latency_batches: tuple[Annotated[int, Field(ge=1)], ...] = (1, 128)
    latency_threads: Annotated[int, Field(ge=1)] = 1
    latency_repeats: Annotated[int, Field(ge=3)] = 20


class File(Strict):
    """The whole file."""

    study: str
    root: str = "."
    data: DataConfig
    train: Recipe
    finetune: FinetuneDefaults = FinetuneDefaults()
    evaluate: EvaluateParams = EvaluateParams()
    sweep: SweepParams = SweepParams()
    methods: Mapping[str, Mapping[str, Any]]
    trainings: Mapping[str, TrainingParams]
    prunings: Mapping[str, PruningParams]
