"""A training step of any method never waits for the device: no number is read back, and no shape
depends on values. So the host can run ahead of a GPU.

One read is allowed: torch's Adam counts steps in tensors on the host. (To be captured as a CUDA
graph it needs `capturable=True`, which torch has only for GPUs.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import registry
from pipeline.data.augment import Transform
from pipeline.data.config import Flip, PadCrop
from pipeline.data.loaders import TrainBatches
from pipeline.data.splits import TensorSplit
from pipeline.training.loop import fit as loop
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.job import Job, Silent
from pipeline.units.enforce import enforce
from tests.conformance.test_methods import METHODS, RECIPE, Batches, make_job
from tests.pipeline.units.laws import random_plan

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")


class HostReads(TorchDispatchMode):
    """Records every operator whose result, or the shape of whose result, the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.read: list[Tensor] = []  # the tensors themselves, since addresses are reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = args[1] if name.startswith("index") and len(args) > 1 else ()
        by_mask = isinstance(chosen, list | tuple) and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in chosen
        )
        if any(word in name for word in WAITS) or by_mask:
            self.found.append(str(func))
            self.read.append(args[0])
        return func(*args, **(kwargs or {}))

    def but(self, counters: Iterable[Any]) -> list[str]:
        """The operators found, except reads of these tensors."""
        own = {t.data_ptr() for t in counters if isinstance(t, Tensor)}
        pairs = zip(self.found, self.read, strict=True)
        return [op for op, tensor in pairs if tensor.data_ptr() not in own]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, int], list[str]]]:
    """What each step of each phase reads: (phase, step of the phase) -> operators."""
    step, found = loop._Loop._train_step, {}

    def counted(self: Any, batch: Any, phase: Any) -> None:
        with HostReads() as reads:
            at = (phase.name, self.phase_step)
            step(self, batch, phase)
        found[at] = reads.but(state.get("step") for state in self.optimizer.state.values())

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_train_step", counted)
        yield found


def steps(job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Any, list[str]]:
    with watched(monkeypatch) as found:
        loop.fit(job, CheckpointFolder(folder, "test"), Silent())
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, backward, clipping, hooks, optimizer, masks, bookkeeping: the loop's whole step."""
    job = make_job(name, Batches())
    job = replace(job, recipe=replace_recipe(clip_norm=1.0, label_smoothing=0.1))
    found = steps(job, tmp_path, monkeypatch)
    assert len(found) >= 12
    assert {at: ops for at, ops in found.items() if ops} == {}


@pytest.mark.parametrize(
    "change",
    [{"precision": "bf16"}, {"accumulation": 2}, {"ema_decay": 0.9}, {"compact": True}],
    ids=lambda change: next(iter(change)),
)
def test_nor_does_another_form_of_the_step(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(
        make_job("hspg" if "compact" in change else "dense", Batches()),
        recipe=replace_recipe(**change),
    )
    if "compact" in change:  # half of the channels are zero and stay zero in HSPG
        enforce(random_plan(job.units, 0.5, torch.Generator().manual_seed(0)), job.model, job.units)
    assert not any(steps(job, tmp_path, monkeypatch).values())


def replace_recipe(**changes: Any) -> Any:
    return RECIPE.model_copy(update=changes)


def test_a_batch_reads_nothing() -> None:
    """Gather, augment, normalise: the work before a step."""
    g = torch.Generator().manual_seed(0)
    split = TensorSplit(
        torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=g), torch.arange(40) % 4
    )
    transform = Transform((PadCrop(), Flip()), (8, 8), (0.5,) * 3, (0.25,) * 3)
    with HostReads() as reads:
        assert len(list(TrainBatches(split, transform, batch_size=16, seed=0).epoch(0))) == 3
    assert reads.found == []


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
    ],
)
def test_these_would_be_seen(read: Any) -> None:
    with HostReads() as reads:
        read(torch.ones(3))
    assert reads.found


def test_every_method_is_asked() -> None:
    assert registry.method_names() == METHODS
