"""Names to code: methods and models register themselves; nothing else names them.

A method is one folder `methods/<name>/` that registers exactly `<name>`; a model family is one file
`models/<family>.py` that registers one or more networks. They are imported on first use, so a study
pays only for what it names.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from pipeline.data.info import DatasetInfo
from pipeline.messages import suggestion
from pipeline.training.method import Method
from pipeline.training.recipe import Strict
from pipeline.units.groups import Units

M = TypeVar("M")
Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class MethodSpec:
    """A registered method: `build(config)` gives the object the loop talks to."""

    name: str
    config: type[Strict]
    build: Callable[[Any], Method]


@dataclass(frozen=True)
class Delivery:
    """A folder form of a network, pruned or not, that the tools of its world know."""

    save: Callable[[nn.Module, Path], None]
    load: Callable[[Path], nn.Module]


@dataclass(frozen=True)
class ModelSpec:
    """A registered network.

    Attributes:
        family: file in models/; name: the network within it; task: key of `tasks.TASKS`.
        build: `build(info, **args) -> nn.Module`; its keyword arguments are the width knobs that
            params.yaml may set under `model:`.
        never_prune: module names whose outputs stay whole (the classifier).
        units: overrides tracing for a network it cannot see through.
        example: `example(info, batch)`: inputs for a network that does not take images.
        uncounted: layers with one of these words in their name are outside all parameter counts
            (the embeddings of an encoder, which no method prunes).
        delivery: how the delivered network is written beside ours.
        branches: offer the branches of its residual stream as units (`trace_units`).
    """

    family: str
    name: str
    build: Builder
    task: str = "classification"
    never_prune: tuple[str, ...] = ()
    units: Callable[[nn.Module], Units] | None = None
    example: Callable[[DatasetInfo, int], Tensor] | None = None
    uncounted: tuple[str, ...] = ()
    delivery: Delivery | None = None
    branches: bool = False


_methods: dict[str, MethodSpec] = {}
_models: dict[tuple[str, str], ModelSpec] = {}


def _names(package: str) -> tuple[str, ...]:
    module = importlib.import_module(package)
    found = (m.name for m in pkgutil.iter_modules(module.__path__))
    return tuple(sorted(n for n in found if not n.startswith("_")))


def method_names() -> tuple[str, ...]:
    """Names of all folders in methods/."""
    return _names("methods")


def family_names() -> tuple[str, ...]:
    """Names of all files in models/."""
    return _names("models")


def register_method(name: str, config: type[Strict]) -> Callable[[type[M]], type[M]]:
    """Class decorator in `methods/<name>/`; the class is built from one `config`.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(cls: type[M]) -> type[M]:
        if name in _methods:
            raise ValueError(f"method {name!r} is registered twice")
        _methods[name] = MethodSpec(name, config, cls)  # type: ignore[arg-type]
        return cls

    return decorate


def register_model(family: str, name: str, **spec: Any) -> Callable[[Builder], Builder]:
    """Function decorator in `models/<family>.py` for a builder of network `name`.

    Raises:
        ValueError: the family already has that name.
    """

    def decorate(build: Builder) -> Builder:
        if (family, name) in _models:
            raise ValueError(f"model {family}/{name} is registered twice")
        _models[family, name] = ModelSpec(family, name, build, **spec)
        return build

    return decorate


def method_spec(name: str) -> MethodSpec:
    """The registered method of that name.

    Raises:
        KeyError: no folder `methods/<name>/`; the message lists the known names.
    """
    if name not in _methods:
        if name not in method_names():
            raise KeyError(f"unknown method {name!r}; {suggestion(name, method_names())}")
        importlib.import_module(f"methods.{name}")
    return _methods[name]


def family_models(family: str) -> Mapping[str, ModelSpec]:
    """All networks of one family.

    Raises:
        KeyError: no file `models/<family>.py`; the message lists the known families.
    """
    if family not in family_names():
        raise KeyError(f"unknown model family {family!r}; {suggestion(family, family_names())}")
    importlib.import_module(f"models.{family}")
    return {n: spec for (f, n), spec in _models.items() if f == family}


def model_spec(family: str, name: str) -> ModelSpec:
    """The registered network `name` of `family`.

    Raises:
        KeyError: unknown family or name; the message lists the known ones.
    """
    models = family_models(family)
    if name not in models:
        raise KeyError(f"unknown model {name!r} in family {family!r}; {suggestion(name, models)}")
    return models[name]


def build_model(
    family: str, name: str, info: DatasetInfo, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a registered network with default initial weights from torch's current RNG state."""
    return model_spec(family, name).build(info, **dict(args or {}))
