"""`train.cuda_graph`: capture one step as a CUDA graph and replay it.

A CUDA graph holds what one step did on the device: kernels, addresses and the numbers that Python
passed. A replay repeats this on the current contents of the same tensors. It is correct only as
long as Python would do the same, so the step is captured again when any of these changes:

    the epoch             hooks between epochs may change any number
    learning rates, shapes and dtypes of the batch, the plan in force
    `Method.replay_key`   whatever else the method decides; None = do not replay this step

The first two steps of each kind run eagerly, since they allocate moments and buffers. A small last
batch also runs eagerly. Batches are copied into fixed tensors; random numbers are drawn as usual.
Loss sums, the average of the weights and the loop's counters stay outside the graph.
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

WARM = 2  # eager steps of a kind before one is captured

Captured = tuple[Callable[[], None], Found]
"""Replays the step and returns its results, in tensors that every replay overwrites."""


class ReplayError(RuntimeError):
    """`train.cuda_graph: true` for a training whose steps cannot be captured."""


def check_replay(job: Job) -> None:
    """Refuse `cuda_graph: true` before any work if it is not possible.

    Raises:
        ReplayError: no GPU, or several processes; says what to change.
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


def captured_on_gpu(work: Callable[[], Found]) -> Captured:
    """Capture `work` without executing it. The current stream must not be the default one.

    Raises:
        ReplayError: `work` does something that a graph cannot capture.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            found = work()
    except RuntimeError as error:
        raise ReplayError(
            f"train.cuda_graph: true, but CUDA cannot capture a step of this training ({error}); "
            "set train.cuda_graph: false in params.yaml"
        ) from error
    return graph.replay, found


def own_stream(job: Job) -> AbstractContextManager[None]:
    """Run the training on a stream of its own: the default stream cannot be captured."""
    on_gpu = job.recipe.cuda_graph and job.device.type == "cuda"
    return _beside_default() if on_gpu else nullcontext()


@contextmanager
def _beside_default() -> Iterator[None]:
    before, own = torch.cuda.current_stream(), torch.cuda.Stream()
    own.wait_stream(before)
    with torch.cuda.stream(own), warnings.catch_warnings():
        # Eager steps between replays are intended.
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
    """The steps of one phase, like `Step`, eager or replayed.

    Attributes:
        replayed: how many steps were replayed.
    """

    def __init__(self, step: Step, capture: Callable[[Callable[[], Found]], Captured]) -> None:
        self.step, self.capture, self.replayed = step, capture, 0
        self._kind: Hashable = None
        self._in_a_row = 0  # steps of this kind
        self._graph: _Graph | None = None
        for group in step.optimizer.param_groups:
            if "capturable" in group:  # Adam and its variants then count steps on the device
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
            self._graph = None  # free its memory before the next capture
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
        """Capture a step. Its hooks run once, for the replay that follows."""
        self.step.optimizer.zero_grad(set_to_none=True)  # must not be freed during the capture
        kept = tuple(tensor.clone() for tensor in batch)
        replay, found = self.capture(lambda: self.step(kept, at))
        return _Graph(kind, kept, replay, found)
