"""The plan in force, multiplied into the weights of a training and whatever goes beside them."""

from __future__ import annotations

from torch import nn

from pipeline.training.loop.job import Job
from pipeline.units.enforce import Enforcer
from pipeline.units.plan import PruningPlan


class Masking:
    """The method's plan, or else the job's, for every network of `models`.

    Compiled anew only when the method has another plan.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.models: list[nn.Module] = [job.model]
        self._compiled: PruningPlan | None = None
        self._enforcers: list[Enforcer] = []

    @property
    def plan(self) -> PruningPlan | None:
        """The plan in force now."""
        return self.job.method.plan() or self.job.keep

    @property
    def digest(self) -> str:
        """Of the plan in force now."""
        plan = self.plan
        return "none" if plan is None else plan.digest()

    def apply(self) -> None:
        """Zero what it removes."""
        plan = self.plan
        if plan is not self._compiled:
            self._enforcers = []
            if plan is not None:
                self._enforcers = [Enforcer(plan, m, self.job.units) for m in self.models]
            self._compiled = plan
        for enforcer in self._enforcers:
            enforcer.apply()
