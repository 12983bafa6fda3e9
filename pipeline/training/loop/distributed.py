"""Data-parallel training in several processes: roles, collectives, consistency checks.

Every process holds the whole network, steps the same optimizer and sees its part of every global
batch. The processes exchange gradients once per step, the images of a batch for mixup, running
statistics and the sums of an epoch once per epoch and checkpoint, and the validation scores, which
the first process measures. docs/adr/0009 says why this is not DistributedDataParallel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.batches import Part
from pipeline.files import tensors_sha256

T = TypeVar("T")


class TeamError(RuntimeError):
    """The processes of a training disagree, or one of them has died."""


@dataclass(frozen=True)
class Team:
    """The processes of one training. With one process every method is the identity.

    With several, a torch.distributed process group must exist. Every method is a collective: all
    processes call it, in the same order. Properties are not collectives.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes, tracks and validates."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is only one process."""
        return self.size == 1

    @property
    def part(self) -> Part:
        """This process's share of every global batch."""
        return Part(self.rank, self.size)

    def wait(self) -> None:
        """Barrier: return once all processes have called this."""
        if not self.alone:
            dist.barrier()

    def tell(self, value: T) -> T:
        """Broadcast: the first process's `value`, in every process."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The `value` of every process, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def mean(self, value: Tensor, weight: int) -> Tensor:
        """Weighted mean of the scalar `value` over processes, with the same bits in each."""
        if self.alone:
            return value
        pair = torch.stack([value * weight, torch.full_like(value, weight)])
        dist.all_reduce(pair)
        return pair[0] / pair[1]

    @torch.no_grad()
    def whole(self, own: Tensor, count: int) -> Tensor:
        """The whole batch of `count` examples, in order; `own` is this process's part of it."""
        if self.alone:
            return own
        first, end = self.part.of(count)
        everything = own.new_zeros((count, *own.shape[1:]))
        everything[first:end] = own
        dist.all_reduce(everything)
        return everything

    def check_same(self, what: Mapping[str, str], when: str) -> None:
        """
        Raises:
            TeamError: a value of `what` differs between processes; names it.
        """
        everybody = self.gather(dict(what))
        for name in what:
            if len({other.get(name) for other in everybody}) > 1:
                raise TeamError(
                    f"the {self.size} processes do not have the same {name} {when}: something in "
                    "the method or the network differs between them (its own random numbers, or "
                    "data it looks at). Set compute.processes: 1 in params.yaml"
                )

    @contextmanager
    def own_randomness(self, device: torch.device, *key: int) -> Iterator[None]:
        """Inside, random numbers depend on (key, rank), so dropout differs between the parts of a
        batch. Afterwards the global generators, equal in all processes, are restored."""
        if self.alone:
            yield
            return
        text = "/".join(map(str, (*key, self.rank)))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            yield

    @torch.no_grad()
    def average_buffers(self, model: nn.Module) -> None:
        """Replace BatchNorm's running statistics, which differ by process, by their mean."""
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        if self.alone or not buffers:
            return
        flat = torch.cat([b.reshape(-1) for b in buffers])
        dist.all_reduce(flat)
        flat.div_(self.size)
        _copy_back(flat, buffers)


ALONE = Team()


class MeanGradients:
    """Replaces gradients by their mean over the examples of all processes, bit-equal in each.

    Covers the parameters of the optimizer (a gate is not a parameter of the model) and of the
    model. `weight` turns means into sums over the part's examples. One tensor is all-reduced per
    step: these sums and the number of examples. So parts of unequal size, even empty ones, are
    weighted correctly, also where backward itself mixes the parts (SyncBatchNorm).
    """

    def __init__(self, team: Team, model: nn.Module, optimizer: Optimizer) -> None:
        self._team = team
        stepped = [p for group in optimizer.param_groups for p in group["params"]]
        found = {id(p): p for p in (*stepped, *model.parameters())}
        self._every = list(found.values())
        self._live: list[Tensor] | None = None

    def weight(self, loss: Tensor, examples: int) -> Tensor | None:
        """The gradient to pass to `loss.backward`, where `loss` is a mean over `examples`."""
        return None if self._team.alone else torch.full_like(loss, examples)

    @torch.no_grad()
    def apply(self, examples: int) -> None:
        """Replace sums over this part's examples by means over all examples.

        Raises:
            TeamError: a parameter has a gradient now and had none in the first step.
        """
        if self._team.alone:
            return
        if self._live is None:
            self._live = self._with_gradients()
        for p in self._live:
            if p.grad is None:  # an empty part, or a branch this part did not take
                p.grad = torch.zeros_like(p)
        if sum(p.grad is not None for p in self._every) != len(self._live):
            raise TeamError(
                "a parameter got its first gradient in the middle of a phase, which several "
                "processes cannot average. Set compute.processes: 1 in params.yaml"
            )
        gradients = [p.grad for p in self._live if p.grad is not None]
        parts = [g.reshape(-1) for g in gradients]
        flat = torch.cat([*parts, parts[0].new_full((1,), float(examples))])
        dist.all_reduce(flat)
        flat[:-1].div_(flat[-1])
        _copy_back(flat[:-1], gradients)

    def _with_gradients(self) -> list[Tensor]:
        """Parameters that have a gradient in any process; this process's part may be empty."""
        everybody = self._team.gather([p.grad is not None for p in self._every])
        anywhere = [any(column) for column in zip(*everybody, strict=True)]
        return [p for p, live in zip(self._every, anywhere, strict=True) if live]

    def digest(self) -> str:
        """Digest of the values of all parameters of optimizer and model."""
        return tensors_sha256({str(i): p.detach().cpu() for i, p in enumerate(self._every)})


def _copy_back(flat: Tensor, tensors: list[Tensor]) -> None:
    pieces = flat.split([t.numel() for t in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view(tensor.shape))
