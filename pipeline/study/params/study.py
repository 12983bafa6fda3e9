"""The class of a validated params.yaml: the settings of each training and pruning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.study.params.errors import ParamsError, named, validated
from pipeline.study.params.schema import File, FinetuneDefaults, Pair, PruningParams, TrainingParams
from pipeline.training.method import Method
from pipeline.training.phases import Phase
from pipeline.training.recipe import Recipe, Strict

# Keys of a recipe that name states of a training.
NAMES_STATES = ("keep_epochs", "keep_best")


class Params:
    """A validated params.yaml.

    Attributes:
        file: the typed content; `study`, `data`, `sweep`, `evaluate` are read from it directly.
        path: where it was read from.
        methods: the common block of every method in use.
        recipes: the recipe of every training.
    """

    def __init__(self, file: File, path: Path) -> None:
        self.file, self.path = file, path
        self.methods = {n: _method_config(path, n, c) for n, c in file.methods.items()}
        self.recipes = {k: self._recipe(k) for k in file.trainings}

    def _recipe(self, key: str) -> Recipe:
        overrides = self.file.trainings[key].train
        where = f"trainings.{key}.train"
        recipe: Recipe = validated(
            self.path, where, Recipe, merge(self.file.train.model_dump(), overrides)
        )
        return recipe

    def training(self, key: str) -> TrainingParams:
        """Raises ParamsError: no such training; lists the known ones."""
        found: TrainingParams = named(self.path, "trainings", self.file.trainings, key)
        return found

    def pruning(self, key: str) -> PruningParams:
        """Raises ParamsError: no such pruning; lists the known ones."""
        found: PruningParams = named(self.path, "prunings", self.file.prunings, key)
        return found

    def pair(self, key: str) -> Pair:
        """Raises ParamsError: no such pair; lists the known ones."""
        found: Pair = named(self.path, "connect.pairs", self.file.connect.pairs, key)
        return found

    def recipe(self, key: str) -> Recipe:
        """The common recipe with the overrides of training `key`."""
        self.training(key)
        return self.recipes[key]

    def method_config(self, key: str) -> Strict:
        """The method's block with the settings of training `key`."""
        training = self.training(key)
        block = merge(self.file.methods[training.method], training.settings)
        kind = registry.method_spec(training.method).config
        config: Strict = validated(self.path, f"trainings.{key}.settings", kind, block)
        return config

    def method(self, key: str) -> Method:
        """The method of training `key`, built from its settings."""
        build = registry.method_spec(self.training(key).method).build
        return build(self.method_config(key))

    def phases(self, key: str) -> tuple[Phase, ...]:
        """The phases of training `key`.

        Raises:
            ParamsError: its method cannot train by this recipe.
        """
        try:
            return tuple(self.method(key).phases(self.recipe(key)))
        except ValueError as error:
            raise ParamsError(f"{self.path}: {error} (training {key!r})") from error

    def retraining(self, key: str) -> FinetuneDefaults:
        """The `finetune` block in force for pruning `key`."""
        own, common = self.pruning(key).finetune, self.file.finetune
        return FinetuneDefaults(
            epochs=common.epochs if own.epochs is None else own.epochs,
            start_from=common.start_from if own.start_from is None else own.start_from,
            deliver=common.deliver if own.deliver is None else own.deliver,
            train=merge(common.train, own.train),
        )

    def retraining_recipe(self, key: str) -> Recipe:
        """The recipe of the retraining of pruning `key`; its `epochs` are the training's. It
        snapshots its last state only, and that of the early stop if it asks for one itself."""
        base = self.recipe(self.pruning(key).training).model_dump()
        for name in ("steps", "evaluate_steps"):
            base.pop(name, None)
        where, overrides = f"prunings.{key}.finetune.train", self.retraining(key).train
        for name in NAMES_STATES:
            base.pop(name, None)
            if name in overrides:
                raise ParamsError(
                    f"{self.path}: {where}.{name}: a retraining snapshots its last state only; "
                    "states of a training are named by train or trainings.<name>.train"
                )
        recipe: Recipe = validated(self.path, where, Recipe, merge(base, overrides))
        return recipe


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` laid over it, block by block."""
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = merge(below, value) if nested else value  # type: ignore[arg-type]
    return merged


def _method_config(path: Path, name: str, raw: Mapping[str, Any]) -> Strict:
    try:
        spec = registry.method_spec(name)
    except KeyError as error:
        raise ParamsError(f"{path}: methods.{name}: {error.args[0]}") from error
    config: Strict = validated(path, f"methods.{name}", spec.config, raw)
    return config
