"""Enforce the current plan: mask the weights of a training and of their average."""

from __future__ import annotations

from torch import nn

from pipeline.training.loop.job import Job
from pipeline.units.enforce import Enforcer
from pipeline.units.plan import PruningPlan


class Masking:
    """Enforces a plan on every network of `models`: the method's or, if it has none, the job's.

    The masks are rebuilt only when the plan changes.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.models: list[nn.Module] = [job.model]
        self._compiled: PruningPlan | None = None
        self._enforcers: list[Enforcer] = []

    @property
    def plan(self) -> PruningPlan | None:
        """The current plan."""
        return self.job.method.plan() or self.job.keep

    @property
    def digest(self) -> str:
        """Digest of the current plan; "none" if there is none."""
        plan = self.plan
        return "none" if plan is None else plan.digest()

    def apply(self) -> None:
        """Zero the weights that the plan removes."""
        plan = self.plan
        if plan is not self._compiled:
            self._enforcers = []
            if plan is not None:
                self._enforcers = [Enforcer(plan, m, self.job.units) for m in self.models]
            self._compiled = plan
        for enforcer in self._enforcers:
            enforcer.apply()
