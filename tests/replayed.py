"""Trainings with `train.cuda_graph`, replayed by a graph in software, and how to compare them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.sfw import largest
from pipeline import registry
from pipeline.training.loop import fit as loop
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.job import Job
from pipeline.training.options.cuda_graph import Replay
from tests.conformance.test_methods import RECIPE, EightSteps, make_job
from tests.pipeline.training.toy import Recorder
from tests.soft_graph import noted

Curve = list[dict[str, Any]]
EPOCHS = 4  # of training at first
Batches = partial(EightSteps, last_size=5)

# stages begin, channels die and epsilon adapts within the few steps there are
OPTIONS: dict[str, dict[str, Any]] = {
    "hspg": {"penalty": 0.5, "epsilon": 0.5, "adapt_epsilon_steps": 5, "momentum": 0.9},
    "dhspg": {"penalty": 0.5, "epsilon": 0.5, "warmup_fraction": 0.4},
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


def graphs_in(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Steps are replayed in software; the code does what it would on a GPU."""
    as_on_a_gpu(monkeypatch)
    made = Graphs([])

    def remembered(*args: Any) -> Replay:
        made.replays.append(Replay(*args))
        return made.replays[-1]

    monkeypatch.setattr(loop, "check_replay", lambda _: None)
    monkeypatch.setattr(loop, "captured_on_gpu", noted)
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


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the code does where the device is none of the host."""
    monkeypatch.setattr(largest, "_keep_on_host", on_device)
    for name in ("adam", "adadelta"):
        module = sys.modules[f"torch.optim.{name}"]
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
