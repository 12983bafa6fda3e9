"""Time of each part of a training step, measured while the loop runs.

    python -m benchmarks.step_profile [--steps 4] [--rounds 3] [--network resnet18]
        [--method sfw] [--bf16] [--channels-last] [--device cpu]

`fit` trains on random images of CIFAR-10's shape; clocks are read between the loop and its parts.
On a CPU the clock is the time of one thread. On a GPU it is events on the stream, i.e. device time:
work of the host does not count unless the device has to wait for it. Percent of the step, medians
over the rounds, networks and methods interleaved. "outside" is everything except the network's
forward and backward pass. "waits": operators of one step whose result the host must wait for and,
on a GPU, the synchronisations that torch's debug mode reports.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.loops import WARM, Setting, images, make_job
from pipeline.data.splits import TensorSplit
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job, Silent

PARTS = ("data", "forward", "loss", "backward", "hooks", "optimizer", "rest")
HOOKS = ("penalty", "after_backward", "after_step", "plan")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")
SETTINGS = {
    ("resnet18", "dense"): Setting("resnet_cifar", "resnet18", 128),
    ("resnet18", "sfw"): Setting("resnet_cifar", "resnet18", 128, "sfw"),
    ("resnet18", "dhspg"): Setting("resnet_cifar", "resnet18", 128, "dhspg"),
    ("resnet20", "dense"): Setting("resnet_cifar", "resnet20", 128),
    ("resnet20", "imp"): Setting("resnet_cifar", "resnet20", 128, "imp", options={"rounds": 1}),
    ("vgg16_bn", "hspg"): Setting("vgg", "vgg16_bn", 64, "hspg", options={"warmup_epochs": 0}),
}


class Clock:
    """Points in time: thread time, or events on the stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def now(self) -> Any:
        if not self._cuda:
            return time.thread_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds; on a GPU the device must have reached `end`."""
        return float(start.elapsed_time(end)) / 1e3 if self._cuda else float(end - start)


class Spans:
    """Spans of time by name. Nested spans count for the inner name only."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.on = clock, False
        self._spans: list[tuple[str, Any, Any, str | None]] = []
        self._open: list[str] = []

    def clear(self) -> None:
        self._spans.clear()

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return work(*args, **kwargs)
            outer = self._open[-1] if self._open else None
            self._open.append(name)
            start = self.clock.now()
            try:
                return work(*args, **kwargs)
            finally:
                self._spans.append((name, start, self.clock.now(), outer))
                self._open.pop()

        return timed

    def seconds(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for name, start, end, outer in self._spans:
            spent = self.clock.between(start, end)
            total[name] += spent
            if outer is not None:
                total[outer] -= spent
        return total


class Watched:
    """The job's batches: times the steps after the first ones and counts the waits of one."""

    def __init__(self, inner: Any, spans: Spans, waits: Waits) -> None:
        self._inner, self._spans, self._waits = inner, spans, waits
        self.began: Any = None
        self.ended: Any = None

    def __len__(self) -> int:
        return len(self._inner)

    def epoch(self, epoch: int, start_step: int = 0, *part: Any) -> Iterator[Any]:
        source = self._inner.epoch(epoch, start_step, *part)
        take = self._spans.around("data", lambda: next(source))
        for number in range(len(self)):
            if number == WARM:
                self._spans.clear()  # only the last epoch is reported
                self._waits.found.clear()
                self._spans.on, self.began = True, self._spans.clock.now()
            batch = take()
            if number < len(self) - 1:
                yield batch
        # The last step is counted, not timed: counting costs time.
        self._spans.on, self.ended = False, self._spans.clock.now()
        self._waits.start()
        try:
            yield batch
        finally:  # the loop asks for no batch beyond the last epoch's
            self._waits.stop()


class Waits(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._cuda, self._warnings = device.type == "cuda", warnings.catch_warnings(record=True)
        self._heard: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS or (name == "index" and _by_mask(args)):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    def start(self) -> None:
        self.__enter__()
        if self._cuda:
            self._heard = self._warnings.__enter__() or []
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
            self.found["reported by CUDA"] += len(self._heard)
            self._warnings.__exit__(None, None, None)
        self.__exit__(None, None, None)


def _by_mask(args: Sequence[Any]) -> bool:
    return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1] or ())


@contextmanager
def seams(job: Job, spans: Spans) -> Iterator[None]:
    """Read clocks around everything that the loop calls in a step."""
    make = job.method.optimizer

    def optimizer(*args: Any) -> Any:
        made = make(*args)
        made.step = spans.around("optimizer", made.step)
        return made

    patched = {name: spans.around("hooks", getattr(job.method, name)) for name in HOOKS}
    with (
        mock.patch.multiple(job.method, optimizer=optimizer, **patched),
        mock.patch.object(Tensor, "backward", spans.around("backward", Tensor.backward)),
        mock.patch.object(type(job.task), "loss", spans.around("loss", type(job.task).loss)),
        mock.patch.object(job.model, "forward", spans.around("forward", job.model.forward)),
    ):
        yield


def profile(
    setting: Setting, split: TensorSplit, steps: int
) -> tuple[dict[str, float], Counter[str]]:
    """Seconds per step of each part and in total, and the waits of one step."""
    device = torch.device(setting.device)
    job, _ = make_job(setting, split, steps + 1)
    spans, waits = Spans(Clock(device)), Waits(device)
    watched = Watched(job.train, spans, waits)
    job = replace(job, train=watched)
    with tempfile.TemporaryDirectory() as folder, seams(job, spans):
        fit(job, CheckpointFolder(Path(folder), "benchmark"), Silent())
    if device.type == "cuda":
        torch.cuda.synchronize()
    found = {part: spans.seconds()[part] / steps for part in PARTS}
    whole = spans.clock.between(watched.began, watched.ended) / steps
    found["rest"] = whole - sum(found.values())
    return found | {"step": whole}, waits.found


def measure(
    asked: dict[tuple[str, str], Setting], split: TensorSplit, steps: int, rounds: int
) -> Iterator[tuple[tuple[str, str], dict[str, float], Counter[str]]]:
    taken: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in asked}
    waits: dict[tuple[str, str], Counter[str]] = {}
    for _ in range(rounds):
        for key, setting in asked.items():
            found, waits[key] = profile(setting, split, steps)
            taken[key].append(found)
    for key, rows in taken.items():
        yield key, {k: statistics.median(row[k] for row in rows) for k in rows[0]}, waits[key]


@click.command(help=__doc__)
@click.option("--steps", default=4, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--network", type=click.Choice(sorted({n for n, _ in SETTINGS})))
@click.option("--method", type=click.Choice(sorted({m for _, m in SETTINGS})))
@click.option("--bf16", is_flag=True)
@click.option("--channels-last", is_flag=True)
@click.option("--device", default="cpu", show_default=True)
def main(steps: int, rounds: int, network: str | None, method: str | None, **form: Any) -> None:
    torch.set_num_threads(1)
    recipe = {"channels_last": form["channels_last"]}
    recipe |= {"precision": "bf16"} if form["bf16"] else {}
    asked = {
        key: replace(s, device=form["device"], recipe={**s.recipe, **recipe})
        for key, s in SETTINGS.items()
        if network in (None, key[0]) and method in (None, key[1])
    }
    heads = "".join(f"{part:>11}" for part in (*PARTS, "outside", "step"))
    sys.stdout.write(f"{'':18}{heads}  waits\n")
    for (name, by), found, waits in measure(asked, images(), steps, rounds):
        whole = found["step"]
        outside = whole - found["forward"] - found["backward"]
        shares = "".join(f"{100 * found[p] / whole:10.2f}%" for p in PARTS)
        shares += f"{100 * outside / whole:10.2f}%{1e3 * whole:8.1f} ms"
        sys.stdout.write(f"{name + ' ' + by:18}{shares}  {dict(waits) or 'none'}\n")


if __name__ == "__main__":
    main()
