"""The optimizer of HESSO-CRIC: plain steps, trials, cycles and the final shrink."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from methods._oto.redundancy import CRITERIA, Criterion, Quota, redundancy
from methods._oto.row_optimizer import DirectedRowOptimizer, Params
from methods.hesso_cric.settings import TRIALS, HESSOCRICConfig, Timetable
from pipeline.training.recipe import OptimizerConfig
from pipeline.units.rows import Rows


class HESSOCRIC(DirectedRowOptimizer):
    """HESSO-CRIC over `rows`; parameters of `params` outside `rows` take plain steps.

    `units["stage"]` is "before"; "begin", one plain step, after which all weights are saved as the
    reference; "trials", where nothing is trained; "cycles", where everything is trained and reset
    to the reference at the end of each cycle; "shrink"; or "after". Trials need the loss: call
    `step(closure)`, or `observe(loss)` before `step()`.
    """

    def __init__(
        self, params: Params, rows: Rows, optimizer: OptimizerConfig, config: HESSOCRICConfig
    ) -> None:
        super().__init__(params, rows, optimizer)
        self.config = config
        self._loss: Tensor | None = None
        self._quota = Quota(rows, config.target_group_sparsity, config.group_divisible)
        self.tried = [i for i, n in enumerate(rows.sizes) if n > config.group_divisible]
        self._points: dict[Criterion, float] = {
            name: config.criteria.get(name, 0.0) for name in CRITERIA
        }
        nothing = torch.zeros_like(rows.entries, dtype=torch.bool)
        zeros = rows.entries.new_zeros(len(TRIALS), len(rows.sizes))
        self.units.update(stage="before", call=0, cycle=0, samples=0, excess=zeros)
        self.units.update({k: nothing.clone() for k in ("pruned", "redundant", "tested", "low")})
        self.units.update(collected=torch.zeros_like(rows.entries), rank=nothing.long())
        self.units["loss"] = zeros.new_zeros(())
        self.schedule(Timetable())

    def schedule(self, times: Timetable) -> None:
        """Set the timetable; it is the same throughout a training."""
        self.units.update(asdict(times))

    def observe(self, loss: Tensor) -> None:
        """Store the loss of this step for `step`."""
        self._loss = loss.detach()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; synchronises with the device only at the end of a cycle.

        Raises:
            ValueError: the loss of a trial was not given.
        """
        if self.units["stage"] != "trials":
            self._loss = None
            if self.units["stage"] == "before" and self.units["step"] >= self.units["start_step"]:
                self.units["stage"] = "begin"
            loss = super().step(closure)
            self._advance()
            return loss
        if closure is not None:
            with torch.enable_grad():
                self._loss = torch.as_tensor(closure()).detach()
        if self._loss is None:
            raise ValueError(
                "HESSO-CRIC is trying out channels and needs the loss of every step: call "
                "observe(loss) before step(), or give step() a closure"
            )
        loss, self._loss = self._loss, None
        self.count()
        self._try(loss)
        return loss

    def replay_key(self) -> Hashable | None:
        units, stage = self.units, self.units["stage"]
        begins = stage == "before" and units["step"] >= units["start_step"]
        plain = stage in ("before", "after") and not begins and not self.counts_in_direction
        return stage if plain else None

    def stays_zero(self) -> Tensor:
        return self.units["pruned"]

    def step_rows(self, moves: list[Tensor]) -> None:
        """The plain step, and the linear shrink of the channels being tested or removed."""
        units, stage = self.units, self.units["stage"]
        if stage in ("begin", "cycles"):
            self._sample(redundancy(self.rows, moves, self._points))
        factor = torch.ones(self.rows.count, dtype=self.rows.dtype, device=units["pruned"].device)
        if stage in ("cycles", "shrink"):
            left = units["sampling_steps" if stage == "cycles" else "hybrid_steps"] - units["call"]
            factor.masked_fill_(units["redundant"], (left - 1) / left)
        factor.masked_fill_(units["pruned"], 0.0)
        self.move_rows(moves, factor, self.row_setting("lr") * factor, self.row_decays())

    def _sample(self, scores: Tensor) -> None:
        units = self.units
        if units["stage"] == "begin":
            units["rank"] = self.rows.rank_in_groups(scores)
            units["redundant"] = self._choose(scores)
            return
        units["collected"] = units["collected"] + scores
        units["samples"] += 1
        units["low"] = units["low"] | self._choose(scores)

    def _choose(self, scores: Tensor) -> Tensor:
        none = self.units["pruned"]
        lowest = self._quota.lowest(scores, self._quota.goal, none)
        return self._quota.multiples(lowest, scores, none)

    def _advance(self) -> None:
        """Enter the next stage, after all parameters have moved."""
        units = self.units
        if units["stage"] in ("before", "after"):
            return
        units["call"] += 1
        if units["stage"] == "begin":
            self._remember()
            self._enter("trials" if units["trials"] and self.tried else "cycles")
        elif units["stage"] == "cycles" and units["call"] >= units["sampling_steps"]:
            self._end_cycle()
        elif units["stage"] == "shrink" and units["call"] >= units["hybrid_steps"]:
            units["pruned"] = units["redundant"]
            self._enter("after")

    def _enter(self, stage: str) -> None:
        self.units.update(stage=stage, call=0)

    def _try(self, loss: Tensor) -> None:
        """Two steps per trial: zero the lowest channels of one group, then compare the loss."""
        units, (trial, second) = self.units, divmod(self.units["call"], 2)
        level, at = divmod(trial, len(self.tried))
        group = self.tried[at]
        if second:
            units["excess"][level, group] = loss / units["loss"].clamp(min=1e-12) - 1.0
            self._go_back()
        else:
            units["loss"] = loss.to(units["loss"])
            number = int(TRIALS[level] * self.rows.sizes[group])
            lowest = (self.rows.group_of == group) & (units["rank"] < number)
            self.rows.scale_((~lowest).to(self.rows.dtype))
        units["call"] += 1
        if units["call"] == 2 * units["trials"] * len(self.tried):
            self._enter("cycles")

    def _end_cycle(self) -> None:
        """Restore the weights. Channels that scored low in this cycle and were never tested are
        tested in the next."""
        units = self.units
        units["tested"] = units["tested"] | units["redundant"]
        suspects = units["low"] & ~units["tested"]
        units["low"] = torch.zeros_like(suspects)
        units["cycle"] += 1
        self._go_back()
        if units["cycle"] < units["cycles"] and int(suspects.sum()) > self.config.tolerance:
            units["redundant"] = suspects
            self._enter("cycles")
            return
        units["redundant"] = self._choose(self.final_scores())
        for own in self.state.values():
            own.pop("reference")
        self._enter("shrink")

    def final_scores(self) -> Tensor:
        """Mean of all samples plus the weighted loss term, scaled so that a doubled loss counts as
        much as a typical score, and the whole term at most as much as one criterion."""
        collected = self.units["collected"] / max(self.units["samples"], 1)
        excess = self.loss_term()
        length = excess.square().sum().sqrt().clamp(min=math.sqrt(self.rows.count))
        return collected + self.config.criteria.get("loss", 0.0) * excess / length

    def loss_term(self) -> Tensor:
        """Mean relative excess loss over the trials that included a channel. A channel that was in
        no trial gets the value of the largest trial of its group."""
        rows, made = self.rows, TRIALS[: self.units["trials"]]
        terms, numbers, largest = (torch.zeros_like(rows.entries) for _ in range(3))
        for level, fraction in sorted(enumerate(made), key=lambda pair: pair[1]):
            size = (fraction * rows.group_size).floor()
            inside = (self.units["rank"] < size[rows.group_of]).to(terms.dtype)
            largest = self.units["excess"][level][rows.group_of]
            terms += inside * largest
            numbers += inside
        return torch.where(numbers > 0, terms / numbers.clamp(min=1), largest)

    def _remember(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["reference"] = p.detach().clone()

    def _go_back(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["reference"])
