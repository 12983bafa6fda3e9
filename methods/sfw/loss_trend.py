"""A step learning-rate schedule that may also follow the trend of the training loss."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from torch.optim import Optimizer

from pipeline.training.phases import EpochStats


class LossTrendSchedule:
    """Learning rates of Miao et al., updated between epochs.

    "decrease_3" divides by 10 at E/3 and 2E/3, "decrease_3_180" at 90 and 130. "dynamic_change"
    divides like "decrease_3". In addition, in every fifth epoch after the 20th, it compares the
    mean loss of the last 5 epochs with that of the last 10, without the newest epoch, and
    multiplies the rate by 0.7 if the loss rises or by 1.06 if it falls.

    Args:
        optimizer: its groups' lr at construction are the base rates.
        scheme: any of the above, or "keep".
        epochs: E.
        loss: the key of `EpochStats.train` to watch.
        start: epoch of the schedule that the first training epoch uses.
    """

    def __init__(
        self, optimizer: Optimizer, scheme: str, epochs: int, loss: str = "loss", start: int = 0
    ) -> None:
        self.optimizer = optimizer
        self.scheme = scheme
        self.loss = loss
        self.epoch = start
        self.losses: list[float] = []
        fixed: dict[str, set[int]] = {"keep": set(), "decrease_3_180": {90, 130}}
        self.cuts = fixed.get(scheme, {epochs // 3, 2 * epochs // 3})
        for epoch in range(start + 1):
            self._divide(epoch)

    def within(self, progress: float) -> None:
        """Does nothing: the rate changes only between epochs."""

    def step(self, stats: EpochStats) -> None:
        self.losses.append(float(stats.train[self.loss]))
        self.epoch += 1
        self._divide(self.epoch)
        if self.scheme == "dynamic_change" and self.epoch > 20 and self.epoch % 5 == 0:
            self._follow_the_loss()

    def _divide(self, epoch: int) -> None:
        if epoch in self.cuts:
            for group in self.optimizer.param_groups:
                group["lr"] /= 10

    def _follow_the_loss(self) -> None:
        if len(self.losses) < 11:  # the schedule started late: too little history yet
            return
        recent, longer = fmean(self.losses[-6:-1]), fmean(self.losses[-11:-1])
        factor = 0.7 if recent > longer else 1.06 if recent < longer else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def state_dict(self) -> dict[str, Any]:
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return {"epoch": self.epoch, "losses": list(self.losses), "lr": rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.losses = int(state["epoch"]), [float(x) for x in state["losses"]]
        for group, lr in zip(self.optimizer.param_groups, state["lr"], strict=True):
            group["lr"] = float(lr)
