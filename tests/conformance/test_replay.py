"""`train.cuda_graph` without a GPU: every method, replayed by a graph in software, ends with the
bits of the ordinary training. The last test asks a GPU the same, where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.study import registry
from pipeline.training import fit as loop
from pipeline.training import largest, replay
from pipeline.training.checkpoint import CheckpointFolder
from pipeline.training.distributed import Team
from pipeline.training.job import Job
from pipeline.training.method import MethodBase, StepContext
from pipeline.training.recipe import OptimizerConfig, Recipe
from pipeline.training.replay import Replay, ReplayError, check_replay
from tests.conformance.test_methods import METHODS, RECIPE, EightSteps, Stopped, make_job
from tests.pipeline.training.toy import Recorder, same
from tests.soft_graph import Refused, noted

Curve = list[dict[str, Any]]
EPOCHS = 4  # of training at first


Batches = partial(EightSteps, last_size=5)

# stages begin, channels die and epsilon adapts within the few steps there are
OPTIONS: dict[str, dict[str, Any]] = {
    "hspg": {"penalty": 0.5, "epsilon": 0.5, "adapt_epsilon_steps": 5, "momentum": 0.9},
    "dhspg": {"penalty": 0.5, "epsilon": 0.5},
    "hesso": {"start_fraction": 0.3, "pruning_fraction": 0.3, "periods": 2},
    "hesso_cric": {"start_fraction": 0.3, "cycle_fraction": 0.25, "cycles": 2},
    "imp": {"rounds": 1, "prune_per_round": 0.5},
    "early_bird": {"length": 2, "epsilon": 1.0},
}


@dataclass
class Graphs:
    """What was noted and replayed in all phases of one training."""

    replays: list[Replay]

    @property
    def replayed(self) -> int:
        return sum(made.replayed for made in self.replays)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Steps are replayed in software."""
    made = Graphs([])

    def remembered(*args: Any) -> Replay:
        made.replays.append(Replay(*args))
        return made.replays[-1]

    monkeypatch.setattr(loop, "check_replay", lambda _: None)
    monkeypatch.setattr(loop, "noted_on_gpu", noted)
    monkeypatch.setattr(loop, "Replay", remembered)
    return made


def job(name: str, graph: bool, batches: EightSteps | None = None, **recipe: Any) -> Job:
    made = make_job(name, batches or Batches())  # type: ignore[arg-type]
    spec = registry.method_spec(name)
    changes = {"epochs": EPOCHS, "clip_norm": 1.0, "cuda_graph": graph, **recipe}
    return replace(
        made,
        method=spec.build(spec.config(**OPTIONS.get(name, {}))),
        recipe=RECIPE.model_copy(update=changes),
        model=with_dropout(made.model),
    )


def with_dropout(model: nn.Module) -> nn.Module:
    """Random numbers in every step: a replay must draw its own."""

    def drop(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return F.dropout(inputs[0], 0.2, layer.training)

    model.get_submodule("linear").register_forward_pre_hook(drop)
    return model


def train(made: Job, folder: Path) -> Curve:
    return loop.fit(made, CheckpointFolder(folder, "test"), Recorder())


def state(folder: Path) -> dict[str, Any]:
    """The last checkpoint, flat: weights, moments, the method's memory, random numbers."""
    flat: dict[str, Any] = {}

    def walk(tree: Any, at: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, f"{at}/{key}")
        elif isinstance(tree, list | tuple):
            for number, value in enumerate(tree):
                walk(value, f"{at}/{number}")
        else:
            flat[at] = tree

    walk(CheckpointFolder(folder, "test").load(), "")
    return {
        k: v
        for k, v in flat.items()
        if "seconds" not in k and "capturable" not in k and k != "/observer"
    }


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys()
    return [
        key
        for key, value in one.items()
        if not (
            torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        )
    ]


def compare(name: str, folder: Path, graphs: Graphs, **recipe: Any) -> int:
    """Train both ways to the same bits; how many steps were replayed."""
    plain, noted_one = job(name, False, **recipe), job(name, True, **recipe)
    rows = train(plain, folder / "plain")
    assert graphs.replayed == 0
    again = train(noted_one, folder / "noted")
    expect_same(rows, again, folder)
    return graphs.replayed


def expect_same(rows: Curve, again: Curve, folder: Path) -> None:
    assert [row["values"] for row in rows] == [row["values"] for row in again]
    assert differing(state(folder / "plain"), state(folder / "noted")) == []


def on_device(x: Tensor, k: int, size: Tensor) -> None:
    """SFW's other way to a threshold, which is the one on a GPU."""
    flat = largest._in_memory_order(size)
    flat.copy_(largest._mask_on_device(flat, k))
    size.mul_(x.sign())


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the code does where the device is none of the host."""
    monkeypatch.setattr(largest, "_keep_on_host", on_device)
    for name in ("adam", "adadelta"):
        module = sys.modules[f"torch.optim.{name}"]
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


# Of each epoch's 8 steps 5 are replayed: two come first, and the last one is smaller. dhspg begins
# a stage in one epoch; hspg adapts epsilon now and then, in an ordinary step; hesso and hesso_cric
# hand over other numbers in every step while they prune; early_bird has found its ticket after two
# epochs; imp has a round of three more.
REPLAYED = {
    "dense": 20,
    "dhspg": 16,
    "early_bird": 10,
    "hesso": 13,
    "hesso_cric": 11,
    "hspg": 11,
    "imp": 35,
    "init_pruning": 20,
    "sfw": 20,
    "slimming": 20,
}


def test_every_method_has_an_answer() -> None:
    assert sorted([*REPLAYED, "gates"]) == sorted(METHODS)  # gates: see their Adam, below


@pytest.mark.parametrize("name", REPLAYED)
def test_a_replayed_training_ends_with_the_same_bits(
    name: str, tmp_path: Path, graphs: Graphs
) -> None:
    assert compare(name, tmp_path, graphs) == REPLAYED[name]


FORMS: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"accumulation": 2},
    {"label_smoothing": 0.1},
    {"mixup": 0.3},
    {"ema_decay": 0.9},
    {"optimizer": OptimizerConfig(lr=0.05, decay_norm_and_bias=False)},
]


@pytest.mark.parametrize("recipe", FORMS, ids=lambda recipe: next(iter(recipe)))
def test_so_does_another_form_of_it(recipe: dict[str, Any], tmp_path: Path, graphs: Graphs) -> None:
    name = "imp" if "ema_decay" in recipe else "dense"  # an average that is masked, too
    assert compare(name, tmp_path, graphs, **recipe) == REPLAYED[name]


@pytest.mark.parametrize("name", ["hspg", "hesso"])
def test_so_does_one_that_leaves_channels_out(name: str, tmp_path: Path, graphs: Graphs) -> None:
    assert compare(name, tmp_path, graphs, compact=True) == REPLAYED[name]
    assert graphs.replays[-1].step.passes.forward.small is not None


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("dense", OptimizerConfig(name="adam", lr=0.01)),
        ("imp", OptimizerConfig(name="adamw", lr=0.01)),
        ("dense", OptimizerConfig(name="adadelta", lr=0.5)),
        ("gates", OptimizerConfig()),
    ],
)
def test_optimizers_that_count_do_so_on_the_device(
    name: str,
    optimizer: OptimizerConfig,
    tmp_path: Path,
    graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which rounds otherwise than on the host, so both trainings here count there."""
    with monkeypatch.context() as patch:
        patch.setattr(replay, "WARM", 10**9)
        rows = train(job(name, True, optimizer=optimizer), tmp_path / "plain")
    assert graphs.replayed == 0
    again = train(job(name, True, optimizer=optimizer), tmp_path / "noted")
    expect_same(rows, again, tmp_path)
    assert graphs.replayed == (35 if name == "imp" else 20)


@pytest.mark.parametrize("name", ["dhspg", "hesso", "hesso_cric"])
def test_rows_on_adam_are_stepped_as_ever(name: str, tmp_path: Path, graphs: Graphs) -> None:
    """Their Adam counts in Python."""
    assert compare(name, tmp_path, graphs, optimizer=OptimizerConfig(name="adam", lr=0.01)) == 0


@pytest.mark.parametrize("name", ["dense", "hspg", "hesso"])
@pytest.mark.parametrize("last", [13, 21])
def test_a_stopped_training_goes_on_to_the_same_bits(
    name: str, last: int, tmp_path: Path, graphs: Graphs
) -> None:
    rows = train(job(name, False), tmp_path / "plain")
    every = {"checkpoint_steps": 3}  # also between replays
    with pytest.raises(Stopped):
        train(job(name, True, Batches(last), **every), tmp_path / "noted")
    again = train(job(name, True, **every), tmp_path / "noted")
    expect_same(rows, again, tmp_path)
    assert graphs.replayed > 8


class CountsInPython(MethodBase):
    """Shrinks weights by a factor of its own in every step, and says nothing of it."""

    def __init__(self) -> None:
        self.count = 0

    @torch.no_grad()
    def after_step(self, model: nn.Module, at: StepContext) -> None:
        self.count += 1
        for weight in model.parameters():
            weight.mul_(1.0 - 0.01 / self.count)


class MakesAnew(MethodBase):
    """Keeps a mean of the gradients in a tensor of its own, another one after every step."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3)

    @torch.no_grad()
    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        bias = model.get_parameter("linear.bias")
        assert bias.grad is not None
        self.mean = self.mean * 0.9 + bias.grad
        bias.grad.copy_(self.mean)


class Reads(MethodBase):
    def after_step(self, model: nn.Module, at: StepContext) -> None:
        assert float(next(model.parameters()).detach().sum()) < 1e9


def test_a_method_that_hides_its_numbers_would_be_seen(tmp_path: Path, graphs: Graphs) -> None:
    plain, other = (replace(job("dense", on), method=CountsInPython()) for on in (False, True))
    train(plain, tmp_path / "plain")
    train(other, tmp_path / "noted")
    assert not same(plain.model, other.model)


def test_so_would_one_that_gives_memory_back(tmp_path: Path, graphs: Graphs) -> None:
    with pytest.raises(Refused, match="given back"):
        train(replace(job("dense", True), method=MakesAnew()), tmp_path)


def test_so_would_one_that_reads(tmp_path: Path, graphs: Graphs) -> None:
    with pytest.raises(Refused, match="_local_scalar_dense"):
        train(replace(job("dense", True), method=Reads()), tmp_path)


def test_without_a_gpu_it_says_so_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"cuda_graph: true.*'cpu'.*cuda_graph: false"):
        train(job("dense", True), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_several_processes_are_refused() -> None:
    made = replace(job("dense", True), device=torch.device("cuda"), team=Team(0, 2))
    with pytest.raises(ReplayError, match="2 processes"):
        check_replay(made)


def test_a_rate_per_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule: linear.*cuda_graph: false"):
        Recipe(epochs=1, schedule={"name": "linear"}, cuda_graph=True)


def test_records_of_other_trainings_do_not_know_it() -> None:
    assert "cuda_graph" not in RECIPE.model_dump()
    assert RECIPE.model_copy(update={"cuda_graph": True}).model_dump()["cuda_graph"] is True


def cuda(made: Job) -> Job:
    """The same job on a GPU."""
    device = torch.device("cuda")

    class Moved(EightSteps):
        def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in super().epoch(epoch, start_step):
                yield x.to(device), y.to(device)

    validation = [(x.to(device), y.to(device)) for x, y in made.validation or ()]
    model = made.model.to(device)
    return replace(
        made, model=model, device=device, train=Moved(last_size=5), validation=validation
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_replays_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real graph, against ordinary steps of the same kind."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "WARM", 10**9)
        rows = train(cuda(job(name, True)), tmp_path / "plain")
    again = train(cuda(job(name, True)), tmp_path / "noted")
    expect_same(rows, again, tmp_path)
