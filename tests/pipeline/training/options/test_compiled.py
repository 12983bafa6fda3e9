"""`train.compile`: the same training, and no trace of the compiler in its results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import registry
from pipeline.files import load_tree
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job
from pipeline.training.options import compiled
from pipeline.training.options.compiled import CompileError, check_compiler
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.conformance import test_methods as conformance
from tests.pipeline.training import toy
from tests.pipeline.training.toy import Recorder

CPU = torch.device("cpu")
SHORT = Recipe(epochs=2, batch_size=8, rewind_epoch=1, compile=True)


class Graphs:
    """A compiler that leaves graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, examples: Any, **options: Any) -> Any:
        del examples, options
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    made = Graphs()
    monkeypatch.setattr(compiled, "HOW", {"backend": made})
    monkeypatch.setattr("pipeline.training.loop.fit.check_compiler", lambda _: None)
    return made


class Uneven(toy.Batches):
    """20 examples, 3 batches, the last one of 4; ends the process before step `last`."""

    def __init__(self, last: int = 10**9) -> None:
        self.left = last

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for step, (x, y) in enumerate(super().epoch(epoch, start_step), start_step):
            if self.left == 0:
                raise conformance.Stopped
            self.left -= 1
            size = 4 if step == 2 else 8
            yield x[:size], y[:size]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (1, 4):
        layers += [nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


# channels fall within two epochs
OPTIONS = {"hspg": {"penalty": 2.0, "epsilon": 0.9, "warmup_epochs": 1}}


def convolutional(name: str, compile: bool = True) -> Job:
    """A small network on made-up images, by a method."""
    spec = registry.method_spec(name)
    method = spec.build(spec.config(**OPTIONS.get(name, {})))
    recipe = conformance.RECIPE.model_copy(update={"epochs": 2, "compile": compile})
    made = replace(conformance.make_job(name, conformance.Batches()), model=network())
    units = trace_units(made.model, torch.randn(1, 1, 8, 8), ("7",))
    fresh = made.model.state_dict()
    return replace(made, method=method, recipe=recipe, units=units, fresh=lambda _: dict(fresh))


def uneven(recipe: Recipe, last: int = 10**9) -> Job:
    """The toy with dropout; evaluated on batches of 8 and 4, too."""
    return toy.job(recipe=recipe, train=Uneven(last), validation=list(Uneven().epoch(99)))


def train(made: Job, folder: Path) -> list[dict[str, Any]]:
    return fit(made, CheckpointFolder(folder, "x"), Recorder())


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((v.double() - w.double()).abs().max()) for v, w in pairs)


def keys(tree: Any) -> Iterator[str]:
    """Every name in a tree as a checkpoint holds it."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield str(key)
            yield from keys(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from keys(value)


@pytest.mark.parametrize("name", ["dense", "gates", "slimming"])
def test_a_compiled_training_is_the_same(name: str, tmp_path: Path, graphs: Graphs) -> None:
    eager, made = convolutional(name, compile=False), convolutional(name)
    curve = train(eager, tmp_path / "eager")
    assert graphs.count == 0
    assert train(made, tmp_path / "compiled") == curve
    assert largest_difference(made.model, eager.model) == 0.0  # the same operators, captured
    assert graphs.count == 2  # training and evaluation, not one per epoch or phase


@pytest.fixture
def inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    try:
        check_compiler(CPU)
    except CompileError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["hspg", "imp"])
def test_with_the_backward_pass_captured_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "HOW", {"backend": "aot_eager"})
    monkeypatch.setattr("pipeline.training.loop.fit.check_compiler", lambda _: None)
    eager, made = convolutional(name, compile=False), convolutional(name)
    train(eager, tmp_path / "eager")
    train(made, tmp_path / "compiled")
    assert largest_difference(made.model, eager.model) < 1e-5
    zeros = [[int((p == 0).sum()) for p in job.model.parameters()] for job in (eager, made)]
    assert zeros[0] == zeros[1]
    assert any(zeros[0])


@pytest.mark.usefixtures("inductor")
def test_the_default_compiler_agrees_and_resumes_to_the_bit(tmp_path: Path) -> None:
    """With dropout, and killed before the one batch of an epoch that has another size."""

    def job(last: int = 10**9, **changes: Any) -> Job:
        return replace(uneven(SHORT.model_copy(update=changes), last), validation=None)

    eager, whole = job(compile=False), job()
    plain, curve = train(eager, tmp_path / "eager"), train(whole, tmp_path / "whole")
    assert largest_difference(whole.model, eager.model) < 1e-5
    assert curve[-1]["values"] == pytest.approx(plain[-1]["values"], rel=1e-4)
    with pytest.raises(conformance.Stopped):
        train(job(last=5, checkpoint_steps=2), tmp_path / "killed")
    resumed = job(checkpoint_steps=2)
    assert train(resumed, tmp_path / "killed") == curve
    assert toy.same(resumed.model, whole.model)


def test_batches_of_two_sizes_make_four_graphs(tmp_path: Path, graphs: Graphs) -> None:
    train(uneven(SHORT.model_copy(update={"epochs": 4})), tmp_path)
    assert graphs.count == 4  # training and evaluation, full and partial batches


def test_a_long_process_compiles_its_last_training_too(tmp_path: Path, graphs: Graphs) -> None:
    """Torch stores eight graphs per forward method and would run later ones uncompiled."""
    for number in range(3):
        width = 8 + number
        model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
        made = replace(uneven(SHORT), model=model, units=Units(("0.weight", "2.weight"), ()))
        train(made, tmp_path / str(number))
        assert graphs.count == 4 * (number + 1)


def test_nothing_kept_knows_the_compiler(tmp_path: Path, graphs: Graphs) -> None:
    made = toy.job(recipe=SHORT.model_copy(update={"keep_best": True, "keep_epochs": (1,)}))
    train(made, tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert {"last", "init", "best"} <= {f.stem for f in files}
    assert graphs.count
    for file in files:
        tree = load_tree(file)
        assert set(tree["model"]) == set(toy.network().state_dict())
        assert not [key for key in keys(tree) if "_orig_mod" in key]
    assert type(made.model) is nn.Sequential


def test_a_slim_network_compiles(tmp_path: Path, graphs: Graphs) -> None:
    def slim(compile: bool) -> Job:
        made = convolutional("dense", compile)
        group = made.units.prunable[0]
        kept = torch.arange(group.size) % 2 == 0
        plan = PruningPlan(Granularity.STRUCTURED, {group.name: kept})
        shrink(plan, made.model, made.units)
        units = trace_units(made.model, torch.randn(1, 1, 8, 8), ("7",))
        return replace(made, units=units)

    eager, made = slim(False), slim(True)
    assert made.model[0].out_channels < 4
    assert train(made, tmp_path / "a") == train(eager, tmp_path / "b")
    assert graphs.count == 2


def test_without_a_compiler_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    observer = Recorder()
    with pytest.raises(CompileError, match=r"train\.compile.*no-such-compiler.*false"):
        fit(toy.job(recipe=SHORT), CheckpointFolder(tmp_path, "x"), observer)
    assert not observer.begun
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_a_compiler_needs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CompileError, match=r"Python\.h"):
        check_compiler(CPU)
    (tmp_path / "Python.h").touch()
    check_compiler(CPU)
    monkeypatch.setattr(compiled, "find_spec", lambda _: None)
    with pytest.raises(CompileError, match="triton"):
        check_compiler(torch.device("cuda"))
