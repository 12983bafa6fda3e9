"""Check that records, dvc.lock and params.yaml agree before anything is reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.selection.target import Target
from pipeline.study import paths
from pipeline.study.params.compare import first_difference
from pipeline.study.params.load import Params, load_parts
from pipeline.study.params.schema import MatchCost
from pipeline.study.records.connect import ConnectRecord
from pipeline.study.records.data import DataRecord
from pipeline.study.records.locked import LOCK, listed, md5
from pipeline.study.records.record import EvalRecord, TrainRecord, read_record
from pipeline.study.records.sweep import SweepRecord
from pipeline.training.recipe import Recipe

Facts = Mapping[str, Any]


def require_agreement(params: Params) -> None:
    """
    Raises:
        ValueError: a record was made with other settings than those of params.yaml, or with other
            data than the record of the data, or is not the file that dvc.lock lists; or a part of
            the study has other data than the rest.
    """
    data: tuple[Path, str] | None = None
    for folder, part in load_parts(params).items():
        with chdir(folder):
            try:
                _require_agreement(part)
                card = paths.DATA_RECORD.is_file() and read_record(DataRecord, paths.DATA_RECORD)
            except ValueError as error:
                if not folder.name:
                    raise
                raise ValueError(f"in {folder}: {error}") from error
        if not card:
            continue
        path = folder / paths.DATA_RECORD
        if data is not None and data[1] != card.card_sha:
            raise ValueError(f"{path}: other data than {data[0]}. Run prepare-data in both folders")
        data = path, card.card_sha


def _require_agreement(params: Params) -> None:
    known, files = listed(), list(_files(params))
    for stage, path in files:
        digest = md5(path)
        if known.get(path.as_posix(), digest) != digest:
            raise ValueError(
                f"{path}: not the file that {LOCK} lists: edited, or of another run. Restore it "
                f"(`git checkout {path}`), or run `dvc repro --force --single-item {stage}`"
            )
    for stage, path in files:
        recorded, asked = _compared(params, stage, path)
        key, was, wanted = first_difference(recorded, asked)
        if key:
            raise ValueError(
                f"{path}: {key}: {was} in the record, {wanted} in {params.path}. Run "
                f"{_way_out(stage, key)}, or undo the edit"
            )


def _way_out(stage: str, key: str) -> str:
    """DVC sees no change in a retraining that inherits a setting which left its training as it was,
    such as the schedule of a training of no epochs."""
    if not key.startswith("finetune"):
        return f"`dvc repro {stage}`"
    forced = f"dvc repro --force --single-item finetune@{stage.partition('@')[2]}"
    return f"`dvc repro {stage}` (if that changes nothing, `{forced}` first)"


def training_difference(params: Params, key: str, record: TrainRecord) -> tuple[str, str, str]:
    """The first setting of a training's record that is not that of params.yaml: key, recorded,
    asked; empty if all agree."""
    return first_difference(*_of_training(params, key, record))


def _files(params: Params) -> Iterator[tuple[str, Path]]:
    """Every existing record, as (stage that wrote it, path)."""
    file = params.file
    asked = [("prepare-data", paths.DATA_RECORD)]
    asked += [(f"train@{key}", paths.record("train", key)) for key in file.trainings]
    asked += [(f"evaluate@{key}", paths.record("evaluate", key)) for key in file.prunings]
    asked += [(f"sweep@{key}", paths.record("sweep", key)) for key in file.sweep.trainings]
    asked += [(f"connect@{key}", paths.record("connect", key)) for key in file.connect.pairs]
    return ((stage, path) for stage, path in asked if path.is_file())


def _compared(params: Params, stage: str, path: Path) -> tuple[Facts, Facts]:
    """The settings of a record, and those of params.yaml."""
    kind, _, key = stage.partition("@")
    if kind == "train":
        return _of_training(params, key, read_record(TrainRecord, path))
    if kind == "evaluate":
        return _of_pruning(params, key, read_record(EvalRecord, path))
    if kind == "sweep":
        return _of_sweep(params, read_record(SweepRecord, path))
    if kind == "connect":
        return _of_pair(params, key, read_record(ConnectRecord, path))
    data = read_record(DataRecord, path)
    return {"data.name": data.name}, {"data.name": params.file.data.name}


def _of_training(params: Params, key: str, record: TrainRecord) -> tuple[Facts, Facts]:
    """Settings are compared as typed values, so a key added since the record has its default."""
    training = params.training(key)
    config = registry.method_spec(training.method).config
    recorded = {
        "training": record.training,
        "model": record.model,
        "model_args": record.model_args,
        "method": record.method,
        "recipe": Recipe.model_validate(record.recipe).model_dump(mode="json"),
        "data": record.data,
        "seed": record.seed,
        "weights": record.parents.get("weights"),
    }
    asked = {
        "training": key,
        "model": f"{training.model.family}/{training.model.name}",
        "model_args": training.model.args,
        "method": training.method,
        "recipe": params.recipe(key).model_dump(mode="json"),
        "data": params.file.data.name,
        "seed": training.seed,
        "weights": training.weights and training.weights.sha256,
    }
    if record.method == training.method:
        settings = config.model_validate(record.method_params)
        recorded["method_params"] = settings.model_dump(mode="json")
        asked["method_params"] = params.method_config(key).model_dump(mode="json")
    if paths.DATA_RECORD.is_file():
        data = read_record(DataRecord, paths.DATA_RECORD)
        recorded["parents.data"], asked["parents.data"] = record.parents.get("data"), data.card_sha
    return recorded, asked


def _of_pruning(params: Params, key: str, record: EvalRecord) -> tuple[Facts, Facts]:
    pruning, retraining = params.pruning(key), params.retraining(key)
    target = {k: v for k, v in record.target.items() if k != "achieved"}
    beside = ("start_from", "draw", "delivered")  # beside the recipe in a record
    recipe = {k: v for k, v in record.finetune.items() if k not in beside}
    told = Recipe.model_validate(recipe).model_dump(mode="json")
    wanted = params.retraining_recipe(key).model_dump(mode="json")
    if isinstance(retraining.epochs, MatchCost):
        _unstretch(told, wanted)
    else:
        wanted["epochs"] = retraining.epochs
    recorded = {
        "training": record.training,
        "at": record.at,
        "saliency": record.saliency,
        "target": Target.model_validate(target).model_dump(mode="json"),
        "finetune": {**told, "start_from": record.finetune["start_from"]},
        "finetune.draw": record.finetune.get("draw", 0),
    }
    asked = {
        "training": pruning.training,
        "at": pruning.at,
        "saliency": pruning.ranking,
        "target": pruning.target.model_dump(mode="json"),
        "finetune": {**wanted, "start_from": retraining.start_from},
        "finetune.draw": pruning.finetune.draw,
    }
    if pruning.granularity is not None:
        recorded["granularity"], asked["granularity"] = record.granularity, pruning.granularity
    return recorded, asked


def _unstretch(told: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Put what is asked in place of recorded numbers that are it, stretched in proportion to the
    saved MACs and rounded."""
    factor = told["epochs"] / wanted["epochs"] if wanted["epochs"] else 0.0
    told["epochs"] = wanted["epochs"]
    for name in ("milestones", "step_size"):
        found, asked = told["schedule"][name], wanted["schedule"][name]
        pairs = [(found, asked)] if name == "step_size" else list(zip(found, asked, strict=False))
        same = name == "step_size" or len(found) == len(asked)
        if same and all(abs(f - factor * a) <= 1 + a / wanted["epochs"] for f, a in pairs):
            told["schedule"][name] = asked


def _of_sweep(params: Params, record: SweepRecord) -> tuple[Facts, Facts]:
    sweep = params.file.sweep
    recorded = {
        "sparsities": sorted({p.sparsity for p in record.points}),
        "ranked": sorted({p.ranked for p in record.points}),
        "scopes": sorted({p.scope for p in record.points}),
    }
    names = ("sparsities", "ranked", "scopes")
    return recorded, {name: sorted(getattr(sweep, name)) for name in names}


def _of_pair(params: Params, key: str, record: ConnectRecord) -> tuple[Facts, Facts]:
    pair = params.pair(key)
    recorded = {
        "one": {"training": record.one.training, "at": record.one.at},
        "other": {"training": record.other.training, "at": record.other.at},
        "points": len(record.points) // 2,
    }
    asked = {
        "one": pair.one.model_dump(),
        "other": pair.other.model_dump(),
        "points": params.file.connect.points,
    }
    return recorded, asked
