"""`train.cuda_graph`: steps that are noted once and replayed, so that a GPU waits for no Python.

A CUDA graph is what one step did on the device: kernels, addresses and the numbers that Python
handed over. Replayed, it takes the next step from whatever its tensors hold by then. That is the
same step while Python would do the same, and it is noted anew when any of these changes:

    the epoch             hooks between epochs may change any number
    learning rates, the form of the batch, the plan in force
    `Method.replay_key`   whatever else the method decides; None = not to be replayed

The first two steps of a kind are ordinary ones: they make what later ones use, moments and buffers.
So is a short last batch. Batches are copied into tensors that stay; random numbers are drawn as
ever. What happens with the loss, the average of the weights and all counting in the loop stay
outside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.training.loop.job import Job
from pipeline.training.loop.step import Found, Step
from pipeline.training.phases import StepContext

WARM = 2  # ordinary steps of a kind before one is noted

Noted = tuple[Callable[[], None], Found]
"""Takes the step again; and what it finds, in tensors that every replay fills."""


class ReplayError(RuntimeError):
    """`train.cuda_graph: true` where steps cannot be replayed."""


def check_replay(job: Job) -> None:
    """Before hours of work, not after, where the recipe asks for it.

    Raises:
        ReplayError: no GPU, or several processes; says the way out.
    """
    if not job.recipe.cuda_graph:
        return
    found = None
    if job.device.type != "cuda":
        found = f"this training runs on {job.device.type!r}, which has none"
    elif not job.team.alone:
        found = f"{job.team.size} processes would exchange gradients inside it, which is not tested"
    if found:
        raise ReplayError(
            f"train.cuda_graph: true, but {found}; set train.cuda_graph: false in params.yaml"
        )


def noted_on_gpu(work: Callable[[], Found]) -> Noted:
    """`work`, noted and not done. The current stream must not be the default one.

    Raises:
        ReplayError: it does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            found = work()
    except RuntimeError as error:
        raise ReplayError(
            f"train.cuda_graph: true, but CUDA cannot hold a step of this training ({error}); set "
            "train.cuda_graph: false in params.yaml"
        ) from error
    return graph.replay, found


def own_stream(job: Job) -> AbstractContextManager[None]:
    """Where steps are noted, all of a training happens on one stream that is not the default."""
    on_gpu = job.recipe.cuda_graph and job.device.type == "cuda"
    return _beside_default() if on_gpu else nullcontext()


@contextmanager
def _beside_default() -> Iterator[None]:
    before, own = torch.cuda.current_stream(), torch.cuda.Stream()
    own.wait_stream(before)
    with torch.cuda.stream(own), warnings.catch_warnings():
        # of the ordinary steps between: they are meant
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable")
        yield
    before.wait_stream(own)


@dataclass(frozen=True)
class _Graph:
    kind: Hashable
    batch: tuple[Tensor, ...]
    replay: Callable[[], None]
    found: Found


class Replay:
    """The steps of one phase, like `Step`, ordinary ones or replayed.

    Attributes:
        replayed: how many were taken from a graph.
    """

    def __init__(self, step: Step, note: Callable[[Callable[[], Found]], Noted]) -> None:
        self.step, self.note, self.replayed = step, note, 0
        self._kind: Hashable = None
        self._in_a_row = 0  # steps of this kind
        self._graph: _Graph | None = None
        for group in step.optimizer.param_groups:
            if "capturable" in group:  # torch's Adam and kin then count their steps on the device
                group["capturable"] = True

    def __call__(self, batch: Any, at: StepContext) -> Found:
        method = self.step.job.method
        own = method.replay_key(at)
        rates = tuple(group["lr"] for group in self.step.optimizer.param_groups)
        form = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        kind = (own, rates, form, id(self.step.masking.plan), at.epoch)
        self._in_a_row = self._in_a_row + 1 if kind == self._kind else 1
        self._kind = kind
        if own is None or self._in_a_row <= WARM:
            return self.step(batch, at)
        if self._graph is None or self._graph.kind != kind:
            self._graph = None  # its memory, before the next one asks for some
            self._graph = self._new(kind, batch, at)
        else:
            method.replayed()
            for kept, given in zip(self._graph.batch, batch, strict=True):
                kept.copy_(given)
        self._graph.replay()
        self.replayed += 1
        loss, sums = self._graph.found  # the next replay overwrites them
        return loss.clone(), {name: value.clone() for name, value in sums.items()}

    def _new(self, kind: Hashable, batch: Any, at: StepContext) -> _Graph:
        """Python runs once while a step is noted, and so counts the replay that does it."""
        self.step.optimizer.zero_grad(set_to_none=True)  # or they die while memory is being noted
        kept = tuple(tensor.clone() for tensor in batch)
        replay, found = self.note(lambda: self.step(kept, at))
        return _Graph(kind, kept, replay, found)
