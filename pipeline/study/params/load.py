"""params.yaml, validated as a whole before any work, as frozen typed objects.

The one place that knows the file's shape. Every error names the file, the key path and the known
alternatives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from pipeline import registry
from pipeline.study.params import pruning_rules
from pipeline.study.params.schema import (
    File,
    FinetuneDefaults,
    Pair,
    PruningParams,
    TrainingParams,
)
from pipeline.training.loop import named_states as keep
from pipeline.training.method import Method
from pipeline.training.recipe import Recipe, Strict

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
KEEPS = ("keep_epochs", "keep_best")


class ParamsError(ValueError):
    """params.yaml asks for something that cannot be; the message says where and what is known."""


class Params:
    """A validated params.yaml.

    Attributes:
        file: the typed content; `study`, `data`, `sweep`, `evaluate` are read from it directly.
    """

    def __init__(self, file: File, path: Path) -> None:
        self.file, self.path = file, path
        self.methods = {n: _method_config(path, n, c) for n, c in file.methods.items()}
        self.recipes = {k: self._recipe(k) for k in file.trainings}
        _check_references(self)

    def _recipe(self, key: str) -> Recipe:
        overrides = self.file.trainings[key].train
        where = f"trainings.{key}.train"
        return _validated(self.path, where, Recipe, merge(self.file.train.model_dump(), overrides))

    def training(self, key: str) -> TrainingParams:
        """Raises ParamsError: no such training; lists the known ones."""
        return _named(self.path, "trainings", self.file.trainings, key)

    def pruning(self, key: str) -> PruningParams:
        """Raises ParamsError: no such pruning; lists the known ones."""
        return _named(self.path, "prunings", self.file.prunings, key)

    def recipe(self, key: str) -> Recipe:
        """The common recipe with the overrides of training `key`."""
        return self.recipes[key]

    def method_config(self, key: str) -> Strict:
        """The method's block with the settings of training `key`."""
        training = self.training(key)
        block = merge(self.file.methods[training.method], training.settings)
        kind = registry.method_spec(training.method).config
        config: Strict = _validated(self.path, f"trainings.{key}.settings", kind, block)
        return config

    def retraining(self, key: str) -> FinetuneDefaults:
        """The `finetune` block in force for pruning `key`."""
        own, common = self.pruning(key).finetune, self.file.finetune
        return FinetuneDefaults(
            epochs=common.epochs if own.epochs is None else own.epochs,
            start_from=common.start_from if own.start_from is None else own.start_from,
            train=merge(common.train, own.train),
        )

    def retraining_recipe(self, key: str) -> Recipe:
        """The recipe of the retraining of pruning `key`; its `epochs` are the training's. It keeps
        its last state only."""
        base = self.recipe(self.pruning(key).training).model_dump()
        where, overrides = f"prunings.{key}.finetune.train", self.retraining(key).train
        for name in KEEPS:
            base.pop(name, None)
            if name in overrides:
                raise ParamsError(
                    f"{self.path}: {where}.{name}: a retraining keeps its last state only; "
                    "states of a training are kept by train or trainings.<name>.train"
                )
        return _validated(self.path, where, Recipe, merge(base, overrides))


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and validate a params file.

    Raises:
        ParamsError: the first things wrong with it, one line each, before any work.
    """
    path = Path(path)
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such file; run from the folder of a params.yaml") from error
    except DuplicateKeyError as error:
        found = re.search(r'found duplicate key "([^"]*)"', str(error))
        name = found.group(1) if found else "?"
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ParamsError(f"{path}:{line}: {name!r} is there twice; names are unique") from error
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: expected a mapping of blocks, got {type(raw).__name__}")
    return Params(_validated(path, "", File, raw), path)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` laid over it, block by block."""
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = merge(below, value) if nested else value  # type: ignore[arg-type]
    return merged


def _named(path: Path, block: str, items: Mapping[str, Any], key: str) -> Any:
    if key not in items:
        raise ParamsError(f"{path}: {block}.{key}: no such entry (known: {_list(items)})")
    return items[key]


def _list(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def _validated(path: Path, where: str, kind: type[Any], raw: Any) -> Any:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [_line(path, where, kind, e) for e in error.errors()]
        raise ParamsError("\n".join(lines)) from error


def _line(path: Path, where: str, kind: type[BaseModel], error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    at = ".".join([where, *loc] if where else loc)
    if error["type"] == "extra_forbidden":
        return f"{path}: {at}: unknown key (known: {_list(_fields_at(kind, error['loc'][:-1]))})"
    if error["type"] == "missing":
        return f"{path}: {at}: missing"
    return f"{path}: {at}: {error['msg']} (got {error['input']!r})"


def _fields_at(kind: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model reached by walking `loc` from `kind`."""
    for part in loc:
        field = kind.model_fields.get(part)
        below = None if field is None else next(_models_in(field.annotation), None)
        kind = below or kind
    return list(kind.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _method_config(path: Path, name: str, raw: Mapping[str, Any]) -> Strict:
    try:
        spec = registry.method_spec(name)
    except KeyError as error:
        raise ParamsError(f"{path}: methods.{name}: {error.args[0]}") from error
    return _validated(path, f"methods.{name}", spec.config, raw)


def _check_references(params: Params) -> None:
    file, path = params.file, params.path
    named = {"trainings": file.trainings, "prunings": file.prunings}
    for block, items in (*named.items(), ("connect.pairs", file.connect.pairs)):
        for key in items:
            if not NAME.fullmatch(key):
                raise ParamsError(
                    f"{path}: {block}.{key}: a name is lower-case letters, digits, '-' and '_' "
                    "(DVC and file names need it)"
                )
    for key, training in file.trainings.items():
        _check_training(params, key, training)
    for key, pruning in file.prunings.items():
        _check_pruning(params, key, pruning)
    for key, pair in file.connect.pairs.items():
        _check_pair(params, f"{path}: connect.pairs.{key}", pair)
    for key in file.deliver:
        _named(path, "prunings", file.prunings, key)
    _check_sweep(path, file)


def _check_sweep(path: Path, file: File) -> None:
    for key in file.sweep.trainings:
        if key not in file.trainings:
            raise ParamsError(
                f"{path}: sweep.trainings: {key!r} is no training (known: {_list(file.trainings)})"
            )
    for name in ("trainings", "sparsities", "ranked", "scopes"):
        values = getattr(file.sweep, name)
        if len(set(values)) != len(values):
            raise ParamsError(f"{path}: sweep.{name}: a value is there twice")


def _check_training(params: Params, key: str, training: TrainingParams) -> None:
    where = f"{params.path}: trainings.{key}"
    if training.method not in params.methods:
        known = ", ".join(registry.method_names())
        hint = f"add a `methods.{training.method}:` block" if training.method in known else ""
        raise ParamsError(
            f"{where}.method: {training.method!r} has no block under `methods` "
            f"(known methods: {known}) {hint}".rstrip()
        )
    params.method_config(key)
    try:
        spec = registry.model_spec(training.model.family, training.model.name)
    except KeyError as error:
        raise ParamsError(f"{where}.model: {error.args[0]}") from error
    arguments = _builder_arguments(spec.build)
    _validated(params.path, f"trainings.{key}.model", arguments, training.model.args)
    _check_mixup(f"{where}.train", params.recipe(key), spec.task)
    _check_keep(params, key, training)


def _check_mixup(where: str, recipe: Recipe, task: str) -> None:
    if recipe.mixup and task != "classification":
        raise ParamsError(f"{where}.mixup: blends images; {task} has none and needs mixup: 0")


def _check_keep(params: Params, key: str, training: TrainingParams) -> None:
    recipe, validated = params.recipe(key), params.file.data.val_size is not None
    if not (recipe.keep_epochs or recipe.keep_best):
        return
    phases = _method(params, key).phases(recipe)
    try:
        keep.check(recipe, phases, validated)
    except ValueError as error:
        name = str(error).partition(":")[0]
        where = f"trainings.{key}.train" if name in training.train else "train"
        raise ParamsError(f"{params.path}: {where}.{error} (training {key!r})") from error


def _method(params: Params, key: str) -> Method:
    method: Method = registry.method_spec(params.training(key).method).build(
        params.method_config(key)
    )
    return method


def _builder_arguments(build: registry.Builder) -> type[BaseModel]:
    """A strict model of a network builder's keyword arguments."""
    parameters = list(inspect.signature(build, eval_str=True).parameters.values())[1:]
    fields: Any = {p.name: (p.annotation, p.default) for p in parameters}
    return create_model("model", __config__=ConfigDict(extra="forbid"), **fields)


def _check_pruning(params: Params, key: str, pruning: PruningParams) -> None:
    where = f"{params.path}: prunings.{key}"
    method = _check_state(params, where, pruning.training, pruning.at)
    try:
        pruning_rules.check(pruning, method.granularity, params.retraining(key))
    except ValueError as error:
        raise ParamsError(f"{where}.{error}") from error
    if pruning.reference is not None:
        model = params.training(pruning.training).model
        arguments = _builder_arguments(registry.model_spec(model.family, model.name).build)
        _validated(params.path, f"prunings.{key}.reference", arguments, pruning.reference)
    model = params.training(pruning.training).model
    task = registry.model_spec(model.family, model.name).task
    _check_mixup(f"{where}.finetune.train", params.retraining_recipe(key), task)


def _check_state(params: Params, where: str, key: str, at: str) -> Method:
    """Raises ParamsError unless training `key` leaves a state `at`; returns its method."""
    if key not in params.file.trainings:
        known = _list(params.file.trainings)
        raise ParamsError(f"{where}.training: {key!r} is no training (known: {known})")
    method, recipe = _method(params, key), params.recipe(key)
    phases = method.phases(recipe)
    states = ["final", "init", "rewind", *(p.name for p in phases if p.keep)]
    states += [*keep.names(recipe, phases), *method.states()]
    if at not in states:
        raise ParamsError(f"{where}.at: {at!r} is no state of it (known: {_list(states)})")
    return method


def _check_pair(params: Params, where: str, pair: Pair) -> None:
    for name, state in (("one", pair.one), ("other", pair.other)):
        _check_state(params, f"{where}.{name}", state.training, state.at)
    one, other = (params.training(s.training).model for s in (pair.one, pair.other))
    if one != other:
        raise ParamsError(f"{where}: two networks, {one} and {other}: a line needs one network")
    if pair.one == pair.other:
        raise ParamsError(f"{where}: one and other are the same state")
