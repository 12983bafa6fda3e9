"""Records: what was measured, deterministic, tracked in git.

A record holds no clock, host, duration, run id or git commit: the same inputs give the same bytes,
so `git diff` of the records is the change of results. The file of a record is its canonical JSON
and `sha` is the SHA-256 of exactly those bytes: `sha256sum` of the file is the hash that tables and
MLflow runs cite. A record cites the hashes of its parents, so its own hash pins its lineage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from pipeline.study.records.connect import ConnectRecord
from pipeline.study.records.data import DataRecord
from pipeline.study.records.sweep import SweepRecord

Scores = Mapping[str, float]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class CurvePoint:
    """The deterministic numbers of one epoch: "train/loss", "validation/top1", "lr", ...

    `epoch` is 0-based over all phases; `step` is the number of optimizer steps done by its end.
    """

    __pydantic_config__: ClassVar = _STRICT
    epoch: int
    step: int
    phase: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """Largest difference of two networks' outputs; `max_rel` by the largest absolute output."""

    __pydantic_config__: ClassVar = _STRICT
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class Exactness:
    """How exact surgery was: the shrunk network against the masked one and, where the rule is
    "zeros" (removing zeros promises no change), against the dense one."""

    __pydantic_config__: ClassVar = _STRICT
    masked: Difference
    dense: Difference | None = None


@dataclass(frozen=True)
class Counts:
    """Integers, counted. Kept = present after surgery; nonzero = not zero after masking. A masked
    network has `params_kept == params_dense`. MACs: one forward, batch 1."""

    __pydantic_config__: ClassVar = _STRICT
    params_dense: int
    params_kept: int
    params_nonzero: int
    macs_dense: int
    macs_kept: int
    macs_nonzero: int

    def __post_init__(self) -> None:
        for what in ("params", "macs"):
            counts = [getattr(self, f"{what}_{k}") for k in ("dense", "kept", "nonzero")]
            if counts != sorted(counts, reverse=True) or counts[-1] < 0:
                raise ValueError(f"{what}: dense >= kept >= nonzero >= 0 does not hold: {counts}")


@dataclass(frozen=True)
class Reference:
    """The network whose sizes are 100% of a row whose pruning names a `reference`.

    Attributes:
        label: its width arguments as text, "width=16".
        params, macs: what was counted with them.
    """

    label: str
    params: int
    macs: int


@dataclass(frozen=True)
class KeptState:
    """A state of a training that was kept: after how many epochs, and what it scored on the
    validation split (nothing, where there is none).

    Attributes:
        epochs: whole epochs before it.
        step, phase_step: of an early-stop state: optimizer steps done in the whole training and in
            its phase (the early-stop iteration); absent for states at the end of an epoch.
    """

    __pydantic_config__: ClassVar = _STRICT
    epochs: int
    validation: Scores
    step: int | None = None
    phase_step: int | None = None


@dataclass(frozen=True)
class TrainRecord:
    """One training.

    Attributes:
        model: family/name.
        model_args, method_params, recipe: as in params.yaml, defaults filled in.
        parents: what it was made from, name -> SHA-256: "data" (the data card), "weights".
        weights_sha: of the final weights (`files.tensors_sha256`).
        kept: the states of `keep_epochs`, `keep_best` and `ema_decay`, by name; absent when
            none was asked for.
    """

    __pydantic_config__: ClassVar = _STRICT
    training: str
    model: str
    model_args: Mapping[str, JsonValue]
    method: str
    method_params: Mapping[str, JsonValue]
    recipe: Mapping[str, JsonValue]
    data: str
    seed: int
    parents: Mapping[str, str]
    curve: tuple[CurvePoint, ...]
    weights_sha: str
    kept: Mapping[str, KeptState] | None = None
    kind: Literal["train"] = "train"
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        _check_curve(self.curve)


@dataclass(frozen=True)
class EvalRecord:
    """One pruning: a row of a table.

    Attributes:
        training_sha: `sha` of the TrainRecord it prunes.
        at: which state of the training was pruned: "final", a kept phase or state by name.
        saliency: who ranked the units, "method" or a name, as in params.yaml.
        target: the selection rule as in params.yaml: rule, value, scope, round_to, min_units; of a
            latency also "achieved", as the search measured it.
        finetune: the recipe of the fine-tuning, epochs included; `finetuned` = it had any. With
            "delivered": "ema" the average of the weights is what was delivered and scored.
        dense, pruned, final: test scores before pruning, after it, and after fine-tuning.
        weight_sparsity, group_sparsity: achieved by the plan, fraction removed; no groups: None.
        exactness: None for unstructured pruning, where no surgery is done.
        finetune_curve: the epochs of the fine-tuning.
    """

    __pydantic_config__: ClassVar = _STRICT
    pruning: str
    training: str
    training_sha: str
    model: str
    method: str
    data: str
    seed: int
    at: str
    granularity: Literal["unstructured", "structured"]
    saliency: str
    target: Mapping[str, JsonValue]
    finetune: Mapping[str, JsonValue]
    finetuned: bool
    dense: Scores
    pruned: Scores
    final: Scores
    counts: Counts
    input_shape: tuple[int, ...]
    weight_sparsity: float
    group_sparsity: float | None
    plan_digest: str
    exactness: Exactness | None = None
    finetune_curve: tuple[CurvePoint, ...] = ()
    kind: Literal["evaluate"] = "evaluate"
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        _check_curve(self.finetune_curve)
        for name in ("weight_sparsity", "group_sparsity"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}, not in [0, 1]")
        if not self.dense.keys() == self.pruned.keys() == self.final.keys():
            raise ValueError("dense, pruned and final do not hold the same scores")


Record = TrainRecord | EvalRecord | SweepRecord | ConnectRecord | DataRecord
R = TypeVar("R", TrainRecord, EvalRecord, SweepRecord, ConnectRecord, DataRecord)


def _check_curve(curve: tuple[CurvePoint, ...]) -> None:
    epochs = [p.epoch for p in curve]
    if epochs != sorted(set(epochs)):
        raise ValueError(f"curve: epochs do not increase: {epochs}")


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, shortest floats that read back equal, a newline at the end.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n"


_LATER = ("kept",)  # added later: omitted at its default, so that published hashes stay valid
_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    cls: TypeAdapter(cls)
    for cls in (TrainRecord, EvalRecord, SweepRecord, ConnectRecord, DataRecord)
}


def to_json(record: Record) -> str:
    """The text of the record's file. Every field is validated as when it is read.

    Raises:
        ValueError: a field has the wrong type or is not finite; the message names it.
    """
    cls = type(record)
    adapter = _ADAPTERS[cls]
    try:
        checked = adapter.validate_json(json.dumps(asdict(record)))
        told = adapter.dump_python(checked, mode="json")
        for name, state in (told.get("kept") or {}).items():
            told["kept"][name] = {k: v for k, v in state.items() if v is not None}
        return canonical({k: v for k, v in told.items() if k not in _LATER or v is not None})
    except ValidationError as error:
        of = record.name if isinstance(record, DataRecord) else record.training
        raise ValueError(f"{cls.__name__} of {of!r}: {_reason(error)}") from error


def from_json(cls: type[R], text: str, name: str = "record") -> R:
    """Inverse of `to_json`; `name` (the file) opens every error.

    Raises:
        ValueError: not JSON, unknown or missing keys, wrong types, counts that contradict each
            other, or text that is not canonical: it was damaged or edited by hand.
    """
    try:
        record: R = _ADAPTERS[cls].validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{name}: not a {cls.__name__}: {_reason(error)}. {_WAY_OUT}") from error
    if to_json(record) != text:
        raise ValueError(f"{name}: edited by hand (not in canonical form). {_WAY_OUT}")
    return record


_WAY_OUT = "Delete the file and run `dvc repro`, which restores or rebuilds it"


def _reason(error: ValidationError) -> str:
    parts = []
    for e in error.errors(include_url=False):
        where = ".".join(str(p) for p in e["loc"])
        parts.append(f"{where}: {e['msg']}" if where else e["msg"])
    return "; ".join(parts)


def sha(record: Record) -> str:
    """SHA-256 of the canonical JSON, hence of the record's file."""
    return hashlib.sha256(to_json(record).encode()).hexdigest()


def write_record(path: Path, record: Record) -> str:
    """Write atomically; returns the hash."""
    from pipeline.files import write_text  # pulls in torch; reading records must not

    text = to_json(record)
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(cls: type[R], path: Path) -> R:
    """Read a record file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged or edited; the message names the file.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text. {_WAY_OUT}") from error
    return from_json(cls, text, str(path))
