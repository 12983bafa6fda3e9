"""Running sums of one epoch, kept on the device so that no step waits for the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.training.loop.distributed import Team


@dataclass
class Totals:
    """Sums over the epoch so far: read once, at its end. `last` is the mean loss of the last batch,
    which had `last_count` examples; `bad_step` is the first step whose loss is not finite, -1 when
    there is none."""

    loss: Tensor
    last: Tensor
    bad_step: Tensor
    count: int = 0
    last_count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def on(cls, device: torch.device) -> Totals:
        zero = torch.zeros((), device=device, dtype=torch.float64)
        return cls(zero, zero.clone(), torch.full((), -1, device=device))

    def add(self, loss: Tensor, sums: Mapping[str, Tensor], size: int, step: int) -> None:
        loss = loss.detach().double()
        self.loss = self.loss + loss * size
        self.last = loss
        bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, step, self.bad_step)
        self.count += size
        self.last_count = size
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, torch.zeros_like(self.loss)) + value

    def first_bad_step(self, team: Team) -> int:
        """Over all processes; -1 when there is none."""
        return min((step for step in team.gather(int(self.bad_step)) if step >= 0), default=-1)

    def over(self, team: Team) -> Totals:
        """Of all processes together: the same everywhere. Alone, these totals."""
        if team.alone:
            return self
        own = {"loss": float(self.loss), "last": float(self.last) * self.last_count}
        own |= {"count": self.count, "last_count": self.last_count}
        everybody = team.gather((own, {k: float(v) for k, v in self.sums.items()}))
        added = {k: sum(numbers[k] for numbers, _ in everybody) for k in own}
        names = list(everybody[0][1])  # the first process has a part of every batch
        sums = {k: sum(other.get(k, 0.0) for _, other in everybody) for k in names}
        state = {k: torch.tensor(added[k], dtype=torch.float64) for k in ("loss", "last")}
        state["last"] /= max(added["last_count"], 1)
        counts = {"count": int(added["count"]), "last_count": int(added["last_count"])}
        tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in sums.items()}
        return Totals.restored({**state, **counts, "sums": tensors}, self.loss.device)

    def means(self) -> dict[str, float]:
        scores = {k: 100.0 * float(v) / self.count for k, v in self.sums.items()}
        return {"loss": float(self.loss) / self.count, "last_loss": float(self.last), **scores}

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "last": self.last,
            "count": self.count,
            "last_count": self.last_count,
            "sums": self.sums,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> Totals:
        totals = cls.on(device)
        totals.loss, totals.last = state["loss"].to(device), state["last"].to(device)
        totals.count, totals.last_count = state["count"], state["last_count"]
        totals.sums = {k: v.to(device) for k, v in state["sums"].items()}
        return totals
