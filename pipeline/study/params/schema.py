"""The shape of params.yaml: every block, every key, every range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.data.config import DataConfig
from pipeline.selection.masks import Layers, Shuffle
from pipeline.selection.saliency import FROM_DATA
from pipeline.selection.saliency import NAMES as SALIENCIES
from pipeline.selection.target import Target
from pipeline.training.recipe import Recipe, Strict
from pipeline.units.groups import Granularity
from pipeline.units.layers import GroupScope

StartFrom = Literal["current", "init", "rewind", "random"]
Ranked = Literal["weights", "all", "all_strict", "channels"]
Scope = Literal["global", "layer"]


def _known_saliency(name: str) -> str:
    if name not in ("method", *SALIENCIES):
        raise ValueError(f"unknown saliency (known: method, {', '.join(SALIENCIES)})")
    return name


Count = Annotated[int, Field(ge=1, le=2**31)]
Few = Annotated[int, Field(ge=1, le=4096)]  # of processes, threads or measurements
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
    """A file, or `hf://<owner>/<repository>/<file>` on the Hugging Face hub."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    prefix: str = ""
    """Stripped from every key, e.g. "module."."""
    into: str | None = None
    """The module they belong to, where they are those of a part only, e.g. "bert"."""


class TrainingParams(Strict):
    """One line of `trainings`: the expensive part. `train` overrides keys of the common recipe,
    `settings` keys of the method's block: variants of one method are lines of one study."""

    model: ModelChoice
    method: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    weights: Weights | None = None
    train: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}


class MatchCost(Strict):
    """Scratch-B: epochs, and the schedule with them, stretched until the retraining costs as many
    MACs as the recipe's epochs cost dense; `cap`: at most so many times the recipe's epochs (2 on
    ImageNet, Liu et al., ICLR 2019). `macs`: by the counted MACs; `target`: by the fraction asked
    for, as the authors of gates do."""

    match: Literal["macs", "target"]
    cap: Annotated[float, Field(ge=1.0)] | None = None


class FinetuneParams(Strict):
    """Retraining after pruning; what is absent comes from the common `finetune` block.

    `draw`: number of the random weights that `start_from: random` begins with.
    """

    added_later = ("draw",)

    epochs: Annotated[int, Field(ge=0)] | MatchCost | None = None
    start_from: StartFrom | None = None
    draw: Annotated[int, Field(ge=0, lt=2**20)] = 0
    train: Mapping[str, Any] = {}


class FinetuneDefaults(Strict):
    """The common `finetune` block: keys of `train` override those of the training's recipe."""

    epochs: Annotated[int, Field(ge=0)] | MatchCost = 0
    start_from: StartFrom = "current"
    train: Mapping[str, Any] = {}


class PruningParams(Strict):
    """One line of `prunings`: a row of a table.

    `saliency_batches` training batches of `saliency_batch_size`, without augmentation, are what
    the saliencies that look at data see.

    `reference`: width arguments of the network whose cost a macs or params target is a fraction of,
    where that is not the trained one (Pruning from Scratch trains a wider one).

    `groups`, `skip`: only these channel groups lose channels, as methods have it: "inner" are those
    that one layer makes and one reads, `skip` leaves out those that a layer of such a name makes.
    Of the groups that the saliency ranks; None = all of them.

    `layers`: "conv" ranks and removes weights of convolutions only, not those of linear layers.

    `shuffle`: the control of a ticket: as many weights in every layer that lost some ("layerwise"),
    or in all of these together ("global"), at random places drawn by `shuffle_seed`.
    """

    training: str
    at: str = "final"
    granularity: Granularity | None = None
    saliency: Annotated[str, AfterValidator(_known_saliency)] = "method"
    saliency_batches: Count = 8
    saliency_batch_size: Count = 128
    target: Target
    reference: Mapping[str, Any] | None = None
    groups: GroupScope | None = None
    skip: tuple[str, ...] = ()
    layers: Layers = "all"
    shuffle: Shuffle = "none"
    shuffle_seed: int = 0
    finetune: FinetuneParams = FinetuneParams()

    @property
    def ranking(self) -> str:
        """The saliency, the data it saw, the groups or layers it was confined to, and whether the
        places it found were shuffled."""
        seen = f" on {self.saliency_batches} batches of {self.saliency_batch_size}"
        lost = f", shuffled {self.shuffle} ({self.shuffle_seed})"
        told = self.saliency + seen * (self.saliency in FROM_DATA)
        told += f", {self.groups} groups" * (self.groups is not None)
        told += f", not {', '.join(self.skip)}" * bool(self.skip)
        told += ", convolutions" * (self.layers == "conv")
        return told + lost * (self.shuffle != "none")


class SweepParams(Strict):
    """One-shot pruning of finished trainings to many sparsities, without retraining: one point for
    each of `ranked`, `scopes` and `sparsities`.

    Attributes:
        ranked: whose magnitudes are ranked together: "weights" of convolution and linear layers;
            "all" parameters, biases and BatchNorm's scales and shifts too, as Miao et al.;
            "all_strict", the same with the count and tie rule of their program;
            "channels", by the norm of their group, removed by surgery.
        scopes: rank the whole network, or remove the same fraction in every layer.
        recalibration_batches: training batches that the BatchNorm statistics are recomputed on.
    """

    trainings: tuple[str, ...] = ()
    sparsities: tuple[Sparsity, ...] = ()
    ranked: Annotated[tuple[Ranked, ...], Field(min_length=1)] = ("weights",)
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("global",)
    recalibration_batches: Count = 50


class State(Strict):
    """A named state of a training."""

    training: str
    at: str = "final"


class Pair(Strict):
    """Two states of one network, the ends of a straight line."""

    one: State
    other: State


class ConnectParams(Strict):
    """Linear mode connectivity: `points` scores on the line between the two states of each pair."""

    pairs: Mapping[str, Pair] = {}
    points: Annotated[int, Field(ge=3, le=4096)] = 11
    recalibration_batches: Count = 50


class EvaluateParams(Strict):
    """How the harness measures: batch size of the scores, and wall-clock latency."""

    batch_size: Count = 256
    latency_batches: tuple[Count, ...] = (1, 128)
    latency_threads: Few = 1
    latency_repeats: Annotated[int, Field(ge=3, le=4096)] = 20


class ComputeParams(Strict):
    """How the machine is used; never a DVC parameter, as it decides no result.

    `processes`: of one training on this machine; "auto" = one per GPU. `threads`: of one process on
    the CPU; small networks are fastest with one, and many times slower with several on a busy
    machine; None = one per core.
    """

    processes: Few | Literal["auto"] = 1
    threads: Few | None = None


class File(Strict):
    """The whole file."""

    study: str
    root: str = "."
    data: DataConfig
    train: Recipe
    finetune: FinetuneDefaults = FinetuneDefaults()
    evaluate: EvaluateParams = EvaluateParams()
    compute: ComputeParams = ComputeParams()
    sweep: SweepParams = SweepParams()
    connect: ConnectParams = ConnectParams()
    methods: Mapping[str, Mapping[str, Any]]
    trainings: Mapping[str, TrainingParams]
    prunings: Mapping[str, PruningParams]
    deliver: tuple[str, ...] = ()
    """Prunings whose networks the report logs and registers as MLflow models."""
