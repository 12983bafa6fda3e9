"""Running sums of one epoch, kept on the device so that no step waits for the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Totals:
    """Sums over the epoch so far: read once, at its end. `bad_step` is the first step whose loss
    is not finite, -1 when there is none."""

    loss: Tensor
    last: Tensor
    bad_step: Tensor
    count: int = 0
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
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, torch.zeros_like(self.loss)) + value

    def means(self) -> dict[str, float]:
        scores = {k: 100.0 * float(v) / self.count for k, v in self.sums.items()}
        return {"loss": float(self.loss) / self.count, "last_loss": float(self.last), **scores}

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "last": self.last, "count": self.count, "sums": self.sums}

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> Totals:
        totals = cls.on(device)
        totals.loss, totals.last = state["loss"].to(device), state["last"].to(device)
        totals.count = state["count"]
        totals.sums = {k: v.to(device) for k, v in state["sums"].items()}
        return totals
