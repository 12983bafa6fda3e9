"""Whether a captured step could stand for the next one, seen without a GPU.

A CUDA graph replays the operators of one step, with the numbers that Python handed them, on the
same memory. So between two steps of an epoch nothing may change but what tensors hold: not the
operators, not their order, not a shape, not a number (a learning rate may at the end of an epoch:
then the step is captured again). What is done with the loss afterwards, `Totals`, stays outside.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pipeline.training import fit as loop
from pipeline.training import largest
from pipeline.training.checkpoint import CheckpointFolder
from pipeline.training.job import Job, Silent
from pipeline.training.recipe import OptimizerConfig
from pipeline.training.totals import Totals
from tests.conformance.test_methods import METHODS, RECIPE, Batches, make_job

Step = list[str]


class Calls(TorchDispatchMode):
    """Notes every operator with its numbers, and its tensors by shape and type."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Step = []
        self.on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if self.on and not name.startswith("profiler."):
            # a tensor made of Python's numbers: what it holds is a number, too
            tell = Tensor.tolist if name.startswith("aten.lift") else _told
            self.found.append(name + str(tree_map(tell, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def _told(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def steps(
    job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[str, int], list[Step]]:
    """The calls of every step, by phase and epoch."""
    step, add, found = loop._Loop._train_step, Totals.add, dict[tuple[str, int], list[Step]]()
    calls = Calls()

    def noted(self: Any, batch: Any, phase: Any) -> None:
        calls.found = []
        with calls:
            at = (phase.name, self.epoch)
            step(self, batch, phase)
        found.setdefault(at, []).append(calls.found)

    def outside(self: Totals, *args: Any) -> None:
        calls.on = False
        add(self, *args)
        calls.on = True

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_train_step", noted)
        patch.setattr(Totals, "add", outside)
        loop.fit(job, CheckpointFolder(folder, "test"), Silent())
    return found


def changes(found: dict[tuple[str, int], list[Step]]) -> dict[str, list[str]]:
    """By phase and epoch, the calls by which a step differs from the one before. The first two
    steps of a phase are left out: they make what later ones use."""
    seen: set[str] = set()
    changed: dict[str, list[str]] = {}
    for (phase, epoch), all_steps in found.items():
        later = all_steps if phase in seen else all_steps[2:]
        seen.add(phase)
        for a, b in zip(later, later[1:], strict=False):
            if a != b:
                changed[f"{phase} {epoch}"] = sorted(set(b) - set(a)) or ["order or count"]
    return changed


class FiveSteps(Batches):
    """Five batches of 8 images an epoch."""

    def __len__(self) -> int:
        return 5

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for step in range(start_step, 5):
            g = torch.Generator().manual_seed(97 * epoch + step)
            yield torch.randn(8, 1, 8, 8, generator=g), torch.randint(0, 3, (8,), generator=g)


def changed(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **recipe: Any
) -> dict[str, list[str]]:
    job = make_job(method, FiveSteps())
    job = replace(job, recipe=RECIPE.model_copy(update={"clip_norm": 1.0, **recipe}))
    return changes(steps(job, folder, monkeypatch))


# With SGD. The others: HESSO and HESSO-CRIC shrink channels by a factor that Python counts, and
# read the loss of trials; SFW on a CPU finds its threshold on the host; gates use torch's Adam.
# `ema_decay` counts, too, but it comes after the step.
REPLAYED = ["dense", "early_bird", "hspg", "imp", "init_pruning", "slimming"]
STAGED = ["dhspg"]  # the step changes where a stage of the method begins, and nowhere else
COUNTED = ["gates", "hesso", "hesso_cric", "sfw"]


def test_every_method_has_an_answer() -> None:
    assert sorted(REPLAYED + STAGED + COUNTED) == sorted(METHODS)


@pytest.mark.parametrize("name", REPLAYED)
def test_a_step_is_the_one_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed(name, tmp_path, monkeypatch) == {}


@pytest.mark.parametrize("name", STAGED)
def test_a_step_changes_where_a_stage_begins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(changed(name, tmp_path, monkeypatch)) == 1


@pytest.mark.parametrize(
    "recipe",
    [
        {"precision": "bf16"},
        {"accumulation": 2},
        {"label_smoothing": 0.1},
        {"optimizer": OptimizerConfig(lr=0.05, nesterov=True)},
        {"optimizer": OptimizerConfig(name="adadelta", lr=0.05)},
    ],
)
def test_so_is_another_form_of_it(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed("dense", tmp_path, monkeypatch, **recipe) == {}


def test_sfw_selects_on_a_device_without_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other way to a threshold, which is the one on a GPU."""

    def on_device(x: Tensor, k: int, size: Tensor) -> None:
        flat = largest._in_memory_order(size)
        flat.copy_(largest._mask_on_device(flat, k))
        size.mul_(x.sign())

    monkeypatch.setattr(largest, "_keep_on_host", on_device)
    assert changed("sfw", tmp_path, monkeypatch) == {}


def test_adam_counts_its_steps_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's would count on the device with `capturable=True`, which it has for GPUs only; ours
    hands its kernel a new number every step. Also what shows that a change would be seen."""
    adam = OptimizerConfig(name="adam", lr=0.05)
    found = changed("dense", tmp_path / "torch", monkeypatch, optimizer=adam)
    assert {call.split(".")[1] for calls in found.values() for call in calls} == {
        "_foreach_addcdiv_",
        "_foreach_div_",
    }
    found = changed("dhspg", tmp_path / "rows", monkeypatch, optimizer=adam)
    assert any(call.startswith("aten.lift") for calls in found.values() for call in calls)
