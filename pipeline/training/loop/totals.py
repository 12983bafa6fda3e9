"""Running sums of one epoch, which stay on the device until they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.training.loop.distributed import Team

_Step = tuple[Tensor, Mapping[str, Tensor], int, int]  # loss, sums, examples, step


@dataclass
class Totals:
    """Sums over the epoch so far, in double precision and in the order of the steps. They do not
    depend on when they are read.

    `add` launches nothing on the device; all other methods wait for the device.

    Attributes:
        loss: sum of the losses of all examples. `last` is the mean loss of the last batch, which
            has `last_count` examples.
        bad_step: the first step with a non-finite loss; -1 if there is none.
        sums: sums of the task's scores, by name.
    """

    loss: float = 0.0
    last: float = 0.0
    bad_step: int = -1
    count: int = 0
    last_count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    _unread: list[_Step] = field(default_factory=list)

    def add(self, loss: Tensor, sums: Mapping[str, Tensor], size: int, step: int) -> None:
        """Add a step. The caller must not change its tensors afterwards."""
        self._unread.append((loss, sums, size, step))
        self.count += size
        self.last_count = size

    def read(self) -> Totals:
        """Add up what has not been read yet; returns self."""
        steps, self._unread = self._unread, []
        if not steps:
            return self
        losses = torch.stack([loss.detach() for loss, *_ in steps]).double().tolist()
        for (*_, size, step), loss in zip(steps, losses, strict=True):
            self.loss += loss * size
            self.last = loss
            if self.bad_step < 0 and not math.isfinite(loss):
                self.bad_step = step
        for name in dict.fromkeys(name for _, sums, *_ in steps for name in sums):
            found = [sums[name] for _, sums, *_ in steps if name in sums]
            for value in torch.stack(found).double().tolist():
                self.sums[name] = self.sums.get(name, 0.0) + value
        return self

    def first_bad_step(self, team: Team) -> int:
        """The first bad step of all processes; -1 if there is none."""
        steps = team.gather(self.read().bad_step)
        return min((step for step in steps if step >= 0), default=-1)

    def over(self, team: Team) -> Totals:
        """Totals over all processes, the same in each; self if there is only one."""
        self.read()
        if team.alone:
            return self
        own = {"loss": self.loss, "last": self.last * self.last_count}
        own |= {"count": self.count, "last_count": self.last_count}
        everybody = team.gather((own, self.sums))
        added = {k: sum(numbers[k] for numbers, _ in everybody) for k in own}
        names = list(everybody[0][1])  # the first process has a part of every batch
        return Totals(
            loss=added["loss"],
            last=added["last"] / max(added["last_count"], 1),
            count=int(added["count"]),
            last_count=int(added["last_count"]),
            sums={k: sum(other.get(k, 0.0) for _, other in everybody) for k in names},
        )

    def means(self) -> dict[str, float]:
        """Means over what has been read: losses, and scores in percent."""
        scores = {k: 100.0 * v / self.count for k, v in self.sums.items()}
        return {"loss": self.loss / self.count, "last_loss": self.last, **scores}

    def state_dict(self) -> dict[str, Any]:
        self.read()
        names = ("loss", "last", "count", "last_count", "sums")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Totals:
        """Inverse of `state_dict`."""
        return cls(**{**state, "sums": dict(state["sums"])})
