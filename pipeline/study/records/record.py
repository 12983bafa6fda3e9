"""Records: deterministic results, tracked in git.

A record holds no time, host, duration, run id or git commit, so the same inputs give the same
bytes, and `git diff` of the records shows the change of results. A record's file is its canonical
JSON. `sha` is the SHA-256 of these bytes, as `sha256sum` prints it; tables and MLflow runs cite it.
A record cites the hashes of its parents, so its own hash identifies its lineage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from pipeline.files import write_text
from pipeline.study.records.connect import ConnectRecord
from pipeline.study.records.data import DataRecord
from pipeline.study.records.states import EarlyStop, KeptState
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
    """Largest difference of two networks' outputs. `max_rel` is relative to the largest absolute
    output."""

    __pydantic_config__: ClassVar = _STRICT
    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class Exactness:
    """How exact surgery was: the shrunk network compared with the masked one and, for the rule
    "zeros" (where no output may change), with the dense one."""

    __pydantic_config__: ClassVar = _STRICT
    masked: Difference
    dense: Difference | None = None


@dataclass(frozen=True)
class Counts:
    """Counts. Kept = present after surgery; nonzero = not zero after masking. A masked network has
    `params_kept == params_dense`. MACs are those of one forward pass with batch size 1."""

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
    """The network whose sizes are 100% for a pruning that names a `reference`.

    Attributes:
        label: its width arguments as text, "width=16".
        params, macs: its counts.
    """

    label: str
    params: int
    macs: int


@dataclass(frozen=True)
class TrainRecord:
    """One training.

    Attributes:
        model: family/name.
        model_args, method_params, recipe: as in params.yaml, with defaults filled in.
        parents: SHA-256 of its inputs, by name: "data" (the data card), "weights".
        weights_sha: hash of the final weights (`files.tensors_sha256`).
        kept: the states of `keep_epochs`, `keep_best`, `evaluate_steps` and `ema_decay`, by name;
            absent if the recipe names none.
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
        at: name of the state of the training that was pruned.
        saliency: what ranked the units, "method" or the name of a criterion, as in params.yaml.
        target: the selection rule as in params.yaml: rule, value, scope, round_to, min_units; for a
            latency also "achieved", the latency that the search measured.
        finetune: the recipe of the fine-tuning, including epochs; `finetuned`: there were epochs.
            With "delivered": "ema" the average of the weights was delivered and scored.
        dense, pruned, final: test scores before pruning, after it, and after fine-tuning.
        weight_sparsity, group_sparsity: fraction removed by the plan; None if there are no groups.
        exactness: None for unstructured pruning, where no surgery is done.
        finetune_curve: the epochs of the fine-tuning.
        early_stop: the state of the lowest validation loss of the fine-tuning, or, without one, of
            the pruned phase of a training under its own mask; only with `evaluate_steps`.
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
    early_stop: EarlyStop | None = None
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
    """Canonical JSON: sorted keys, shortest exact floats, a newline at the end.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n"


_LATER = (
    "kept",
    "early_stop",
)  # fields added later: omitted at their default, so published hashes stay valid
_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    cls: TypeAdapter(cls)
    for cls in (TrainRecord, EvalRecord, SweepRecord, ConnectRecord, DataRecord)
}


def to_json(record: Record) -> str:
    """The text of the record's file. Fields are validated as in `from_json`.

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
    """Inverse of `to_json`. Every error begins with `name` (the file).

    Raises:
        ValueError: not JSON; unknown or missing keys; wrong types; counts that contradict each
            other; or text that is not canonical, so it was damaged or edited.
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
