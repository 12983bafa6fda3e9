"""The schema of params.yaml: every block, key and range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.data.config import DataConfig
from pipeline.messages import shortened
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
        raise ValueError(f"unknown {shortened(name)!r} (known: method, {', '.join(SALIENCIES)})")
    return name


Count = Annotated[int, Field(ge=1, le=2**31)]
Few = Annotated[int, Field(ge=1, le=4096)]  # number of processes, threads or measurements
Words = Annotated[str, Field(pattern=r"^[ -~]+$", max_length=200)]  # one line of a job script
Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)]


class ModelChoice(BaseModel):
    """A network of the registry; further keys are the width arguments of its builder."""

    model_config = ConfigDict(extra="allow", frozen=True)
    family: str
    """A file of models/; the networks are listed below."""
    name: str
    """A network of the family."""

    @property
    def args(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Weights(Strict):
    """Weights to start from: a safetensors file, or a torch checkpoint of plain tensors."""

    path: str
    """A file, or `hf://<owner>/<repository>/<file>` on the Hugging Face hub."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the file; another file is refused."""
    prefix: str = ""
    """Removed from every key, e.g. "module."."""
    into: str | None = None
    """Module to load them into, if they belong to a part of the network, e.g. "bert"."""


class TrainingParams(Strict):
    """One entry of `trainings`: a network, a method and a seed."""

    model: ModelChoice
    method: str
    """A key of `methods`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial weights and, unless `train.data_seed` is set, of the data order."""
    weights: Weights | None = None
    """Weights to start from instead of random ones."""
    train: Mapping[str, Any] = {}
    """Overrides of keys of the common `train` block."""
    settings: Mapping[str, Any] = {}
    """Overrides of keys of the method's block."""


class MatchCost(Strict):
    """Scratch-B (Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019): the epochs and
    the schedule are stretched until retraining costs as many MACs as the recipe's epochs cost on
    the dense network."""

    match: Literal["macs", "target"]
    """macs: by the counted MACs; target: by the fraction in the target, as the authors of Pruning
    from Scratch do."""
    cap: Annotated[float, Field(ge=1.0)] | None = None
    """At most this many times the recipe's epochs (Liu et al.: 2 on ImageNet)."""


Form = Literal["program", "onnx", "folder"]


class FinetuneParams(Strict):
    """Retraining of one pruning. Missing keys come from the common `finetune` block."""

    added_later = ("draw", "deliver")

    epochs: Annotated[int, Field(ge=0)] | MatchCost | None = None
    """Epochs of the retraining, or what they should cost. Default: that of the common block."""
    start_from: StartFrom | None = None
    """Weights that retraining starts from. Default: that of the common block."""
    draw: Annotated[int, Field(ge=0, lt=2**20)] = 0
    """Which random weights `start_from: random` begins with, by number."""
    deliver: tuple[Form, ...] | None = None
    """Files for other programs beside the weights."""
    train: Mapping[str, Any] = {}
    """Overrides keys of the training's recipe."""


class FinetuneDefaults(Strict):
    """The common `finetune` block: how pruned networks are retrained."""

    added_later = ("deliver",)

    epochs: Annotated[int, Field(ge=0)] | MatchCost = 0
    """0: deliver the network as pruned."""
    start_from: StartFrom = "current"
    """Weights that retraining starts from: the pruned ones, those of a named state, or new ones."""
    deliver: tuple[Form, ...] = ()
    """Files for other programs, each loaded again and compared with the network. program:
    torch.export, any number of examples; onnx: the same as ONNX (needs the onnx extra); folder:
    that of the network's own library (transformers), measured."""
    train: Mapping[str, Any] = {}
    """Overrides keys of the training's recipe."""


class PruningParams(Strict):
    """One entry of `prunings`: a row of a table."""

    training: str
    """An entry of `trainings`."""
    at: str = "final"
    """The named state of the training that is pruned."""
    granularity: Granularity | None = None
    """Default: the granularity of the units that the method ranks."""
    saliency: Annotated[str, AfterValidator(_known_saliency)] = "method"
    """What ranks the units: the method itself, or a criterion by name."""
    saliency_batches: Count = 8
    """Training batches, without augmentation, for a criterion that is computed from data."""
    saliency_batch_size: Count = 128
    """Examples in each of these batches."""
    target: Target
    """How much is pruned."""
    reference: Mapping[str, Any] | None = None
    """Width arguments of the network that a `macs` or `params` target is a fraction of, if it is
    not the trained one (Pruning from Scratch trains a wider network)."""
    groups: GroupScope | None = None
    """Prune only these channel groups. inner: groups that one layer writes and one layer reads."""
    skip: tuple[str, ...] = ()
    """Patterns of layer names: channel groups that a matching layer produces are not pruned."""
    layers: Layers = "all"
    """conv: rank and prune the weights of convolutions only, not those of linear layers."""
    shuffle: Shuffle = "none"
    """Control experiment for a ticket: prune the same number of weights at random positions, per
    layer (layerwise) or over all pruned layers together (global)."""
    shuffle_seed: int = 0
    """Seed of the random positions of `shuffle`."""
    finetune: FinetuneParams = FinetuneParams()
    """How this pruned network is retrained, where the common `finetune` block does not say it."""

    @property
    def ranking(self) -> str:
        """Description of the ranking: the saliency, its data, the groups or layers it was limited
        to, and whether its mask was shuffled."""
        seen = f" on {self.saliency_batches} batches of {self.saliency_batch_size}"
        lost = f", shuffled {self.shuffle} ({self.shuffle_seed})"
        told = self.saliency + seen * (self.saliency in FROM_DATA)
        told += f", {self.groups} groups" * (self.groups is not None)
        told += f", not {', '.join(self.skip)}" * bool(self.skip)
        told += ", convolutions" * (self.layers == "conv")
        return told + lost * (self.shuffle != "none")


class SweepParams(Strict):
    """One-shot pruning of finished trainings to many sparsities, without retraining: one point for
    each combination of `ranked`, `scopes` and `sparsities`."""

    trainings: tuple[str, ...] = ()
    """Entries of `trainings`; each gets its curve."""
    sparsities: tuple[Sparsity, ...] = ()
    """Fractions of the ranked units that are removed."""
    ranked: Annotated[tuple[Ranked, ...], Field(min_length=1)] = ("weights",)
    """Units ranked together by magnitude. weights: those of convolution and linear layers; all:
    every parameter, as Miao et al.; all_strict: the same with the count and tie rule of their
    program; channels: by the norm of their group, removed by surgery."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("global",)
    """global: rank the whole network; layer: remove the same fraction in every layer."""
    recalibration_batches: Count = 50
    """Training batches for new BatchNorm statistics."""


class State(Strict):
    """A named state of a training."""

    training: str
    """An entry of `trainings`."""
    at: str = "final"
    """Name of the state; the page on DVC lists them."""


class Pair(Strict):
    """Two states of one network: the ends of a straight line."""

    one: State
    """The end at position 0."""
    other: State
    """The end at position 1."""


class ConnectParams(Strict):
    """Linear mode connectivity: scores along the straight line between two states."""

    pairs: Mapping[str, Pair] = {}
    """Pairs of states by name; each gets a curve."""
    points: Annotated[int, Field(ge=3, le=4096)] = 11
    """Networks scored on each line, both ends included."""
    recalibration_batches: Count = 50
    """Training batches for new BatchNorm statistics."""


class EvaluateParams(Strict):
    """How networks are scored and timed."""

    batch_size: Count = 256
    """Examples in a batch while scoring. It changes scores only by rounding."""
    latency_batches: tuple[Count, ...] = (1, 128)
    """Batch sizes at which latency is measured."""
    latency_threads: Few = 1
    """CPU threads while latency is measured."""
    latency_repeats: Annotated[int, Field(ge=3, le=4096)] = 20
    """Forward passes per batch size; their median counts."""


class ClusterParams(Strict):
    """One job of `espalier run --engine slurm`. A job runs one stage after another."""

    partition: Words | None = None
    """Default: Slurm's own."""
    account: Words | None = None
    """The account that is charged; default: Slurm's own."""
    time: Annotated[
        str, Field(pattern=r"^([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}$", examples=["04:00:00"])
    ] = "04:00:00"
    """Limit of a job, as Slurm writes it: minutes, hours:minutes:seconds, days-hours. A training
    that needs longer goes on in the next job."""
    nodes: Few = 1
    """Of one job. With several, a training runs in `compute.processes` processes on each."""
    cores: Few = 1
    """Of a node, as are `memory` and `gpus`."""
    memory: Annotated[str, Field(pattern=r"^[0-9]+(MB|GB)$", examples=["8GB"])] = "8GB"
    """Main memory, e.g. 8GB."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """For one stage; it uses several with `compute.processes`."""
    jobs: Few = 16
    """At once, unless `--workers` says otherwise."""
    extra: tuple[Words, ...] = ()
    """Further options of sbatch, e.g. `--constraint=a100`."""


class ComputeParams(Strict):
    """How the machine is used. It determines no result, so it is not a DVC parameter."""

    processes: Few | Literal["auto"] = 1
    """Processes of one training; auto: one per GPU."""
    threads: Few | None = None
    """CPU threads of one process. Small networks are fastest with 1; default: one per core."""
    cluster: ClusterParams = ClusterParams()
    """What a job asks Slurm for."""


class File(Strict):
    """The whole file."""

    study: str
    """Name of the study and of its MLflow experiment."""
    root: str = "."
    """Path from this file to the code."""
    parts: tuple[PartName, ...] = ()
    """Folders below this one that hold parts of the study: params.yaml files with the same `study`
    and `data`. Each runs by itself; the report here covers them all."""
    data: DataConfig
    train: Recipe
    """The recipe of every training, unless it overrides a key."""
    finetune: FinetuneDefaults = FinetuneDefaults()
    evaluate: EvaluateParams = EvaluateParams()
    compute: ComputeParams = ComputeParams()
    sweep: SweepParams = SweepParams()
    connect: ConnectParams = ConnectParams()
    methods: Mapping[str, Mapping[str, Any]]
    """Settings of each method in use, by its name."""
    trainings: Mapping[str, TrainingParams]
    """Networks to train, by name: one block each."""
    prunings: Mapping[str, PruningParams]
    """Prunings of trained networks, by name: one row of the tables each."""
    deliver: tuple[str, ...] = ()
    """Prunings whose networks the report logs and registers as MLflow models."""
