"""Check the entries of params.yaml against each other and the registry, before any work."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from pipeline import registry
from pipeline.messages import shortened, suggestion
from pipeline.study.params import pruning_rules
from pipeline.study.params.errors import ParamsError, validated
from pipeline.study.params.schema import File, Pair, PruningParams, TrainingParams
from pipeline.study.params.study import Params
from pipeline.training.loop import named_states
from pipeline.training.method import Method
from pipeline.training.recipe import Recipe

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
LONGEST_NAME = 100
WIDEST = 2**20  # the largest integer that is passed to a network's builder


def check_names(path: Path, file: File) -> None:
    """
    Raises:
        ParamsError: DVC, a shell or a file system would not accept a name unchanged.
    """
    named_blocks = {"trainings": file.trainings, "prunings": file.prunings}
    for block, items in (*named_blocks.items(), ("connect.pairs", file.connect.pairs)):
        for key in items:
            if not NAME.fullmatch(key) or len(key) > LONGEST_NAME:
                raise ParamsError(
                    f"{path}: {block}.{shortened(key)}: a name is at most {LONGEST_NAME} "
                    "lower-case letters, digits, '-' and '_' (DVC and file names need it)"
                )
    for key in (*file.deliver, *file.sweep.trainings):
        if not NAME.fullmatch(key):
            block = "deliver" if key in file.deliver else "sweep.trainings"
            known = file.prunings if block == "deliver" else file.trainings
            raise ParamsError(
                f"{path}: {block}: {shortened(key)!r} is no name; {suggestion(key, known)}"
            )
    if not file.study.isprintable() or not file.study.strip() or len(file.study) > LONGEST_NAME:
        raise ParamsError(
            f"{path}: study: {shortened(file.study)!r} is no name of an experiment: one line of at "
            f"most {LONGEST_NAME} characters"
        )


def check_references(params: Params) -> None:
    """
    Raises:
        ParamsError: an entry names something that does not exist, or cannot be carried out.
    """
    file, path = params.file, params.path
    for key, training in file.trainings.items():
        _check_training(params, key, training)
    for key, pruning in file.prunings.items():
        _check_pruning(params, key, pruning)
    for key, pair in file.connect.pairs.items():
        _check_pair(params, f"{path}: connect.pairs.{key}", pair)
    for key in file.deliver:
        if key not in file.prunings:
            raise ParamsError(
                f"{path}: deliver: {shortened(key)!r} is no pruning; "
                f"{suggestion(key, file.prunings)}"
            )
    _check_sweep(path, file)


def _check_sweep(path: Path, file: File) -> None:
    for key in file.sweep.trainings:
        if key not in file.trainings:
            raise ParamsError(
                f"{path}: sweep.trainings: {key!r} is no training; "
                f"{suggestion(key, file.trainings)}"
            )
    if file.sweep.trainings and not file.sweep.sparsities:
        raise ParamsError(f"{path}: sweep.sparsities: empty; add values such as [0.5, 0.9]")
    for name in ("trainings", "sparsities", "ranked", "scopes"):
        values = getattr(file.sweep, name)
        if len(set(values)) != len(values):
            raise ParamsError(f"{path}: sweep.{name}: a value is there twice")


def _check_training(params: Params, key: str, training: TrainingParams) -> None:
    where = f"{params.path}: trainings.{key}"
    if training.method not in params.methods:
        known = registry.method_names()
        hint = f"; add a `methods.{training.method}:` block" if training.method in known else ""
        raise ParamsError(
            f"{where}.method: {shortened(training.method)!r} has no block under `methods`"
            f"{hint}; {suggestion(training.method, known).replace('(known', '(known methods')}"
        )
    params.method_config(key)
    try:
        spec = registry.model_spec(training.model.family, training.model.name)
    except KeyError as error:
        raise ParamsError(f"{where}.model: {error.args[0]}") from error
    _check_arguments(params.path, f"trainings.{key}.model", spec, training.model.args)
    recipe = params.recipe(key)
    _check_recipe(params, f"{where}.train", recipe, spec.task)
    _check_rewind(params, key, training, recipe)
    _check_named_states(params, key, training, recipe)


def _check_recipe(params: Params, where: str, recipe: Recipe, task: str) -> None:
    if recipe.flush_denormal and params.file.compute.threads != 1:
        raise ParamsError(
            f"{where}.flush_denormal: true needs compute.threads: 1, since torch's other threads "
            "would compute with such numbers as before"
        )
    if recipe.mixup and task != "classification":
        raise ParamsError(f"{where}.mixup: blends images; {task} has none and needs mixup: 0")


def _check_rewind(params: Params, key: str, training: TrainingParams, recipe: Recipe) -> None:
    epochs = 0  # epochs before the first phase that needs the state
    for phase in params.phases(key):
        if phase.start_from == "rewind":
            break
        epochs += phase.epochs
    if epochs and recipe.rewind_epoch > epochs:
        where = f"trainings.{key}.train" if "rewind_epoch" in training.train else "train"
        raise ParamsError(
            f"{params.path}: {where}.rewind_epoch: {recipe.rewind_epoch} is beyond the end, epoch "
            f"{epochs} (training {key!r})"
        )


def _check_named_states(params: Params, key: str, training: TrainingParams, recipe: Recipe) -> None:
    if not (recipe.keep_epochs or recipe.keep_best or recipe.evaluate_steps):
        return
    validates = params.file.data.val_size is not None
    try:
        named_states.check(recipe, params.phases(key), validates)
    except ValueError as error:
        name = str(error).partition(":")[0]
        where = f"trainings.{key}.train" if name in training.train else "train"
        raise ParamsError(f"{params.path}: {where}.{error} (training {key!r})") from error


def _check_arguments(
    path: Path, where: str, spec: registry.ModelSpec, args: Mapping[str, Any]
) -> None:
    """Check the arguments of a network's builder: names, types, and widths that are possible."""
    validated(path, where, _builder_arguments(spec.build), args)
    for name, value in args.items():
        for number in value if isinstance(value, list) else [value]:
            integer = isinstance(number, int) and not isinstance(number, bool)
            if integer and not 1 <= number <= WIDEST:
                raise ParamsError(f"{path}: {where}.{name}: {number} is not from 1 to {WIDEST}")
            if isinstance(number, float) and not 0 <= number <= WIDEST:
                raise ParamsError(f"{path}: {where}.{name}: {number} is not from 0 to {WIDEST}")


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
    model = params.training(pruning.training).model
    spec = registry.model_spec(model.family, model.name)
    if pruning.reference is not None:
        _check_arguments(params.path, f"prunings.{key}.reference", spec, pruning.reference)
    recipe = params.retraining_recipe(key)
    _check_recipe(params, f"{where}.finetune.train", recipe, spec.task)


def _check_state(params: Params, where: str, key: str, at: str) -> Method:
    """Raises ParamsError unless training `key` leaves a state `at`; returns its method."""
    if key not in params.file.trainings:
        raise ParamsError(
            f"{where}.training: {shortened(key)!r} is no training; "
            f"{suggestion(key, params.file.trainings)}"
        )
    method, recipe = params.method(key), params.recipe(key)
    phases = params.phases(key)
    states = ["final", "init", "rewind", *(p.name for p in phases if p.keep)]
    states += [*named_states.names(recipe, phases), *method.states()]
    if at not in states:
        raise ParamsError(
            f"{where}.at: {shortened(at)!r} is no state of it; {suggestion(at, states)}"
        )
    return method


def _check_pair(params: Params, where: str, pair: Pair) -> None:
    for name, state in (("one", pair.one), ("other", pair.other)):
        _check_state(params, f"{where}.{name}", state.training, state.at)
    one, other = (params.training(s.training).model for s in (pair.one, pair.other))
    if one != other:
        raise ParamsError(f"{where}: two networks, {one} and {other}: a line needs one network")
    if pair.one == pair.other:
        raise ParamsError(f"{where}: one and other are the same state")
