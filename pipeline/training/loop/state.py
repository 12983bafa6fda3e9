"""What a running training holds: checks of it, snapshots, checkpoints and resumption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pipeline.training.loop.checkpoint import CheckpointFolder, restore_rng, rng_state
from pipeline.training.loop.curve import Curve
from pipeline.training.loop.distributed import MeanGradients
from pipeline.training.loop.early_stop import Evaluations
from pipeline.training.loop.finite import DivergedError, weights_are_finite
from pipeline.training.loop.job import Job, Observer
from pipeline.training.loop.masking import Masking
from pipeline.training.loop.named_states import kept
from pipeline.training.loop.passes import Backward
from pipeline.training.loop.step import Step
from pipeline.training.loop.totals import Totals
from pipeline.training.options.compact import Compact
from pipeline.training.options.cuda_graph import Replay
from pipeline.training.options.ema import Average
from pipeline.training.phases import Phase
from pipeline.training.schedules import Schedule

_COUNTERS = ("phase_epoch", "phase_step", "epoch", "step_in_epoch", "step", "examples", "stop")


class LoopState:
    """The state of a running training, without the order of its steps (`fit`)."""

    def __init__(self, job: Job, folder: CheckpointFolder, observer: Observer) -> None:
        self.job, self.folder = job, folder
        self.model, self.method, self.team = job.model, job.method, job.team
        self.recipe = job.recipe.placed(len(job.train))
        self.last_epoch_steps = self.recipe.last_epoch_steps(len(job.train))
        self.phases = list(self.method.phases(self.recipe))
        self.phase_index = self.phase_epoch = self.epoch = self.step_in_epoch = self.step = 0
        self.phase_step = self.examples = 0
        self.stop = False
        self.curve = Curve(observer)
        self.evaluations = Evaluations(self.recipe.evaluate_steps)
        self.masking = Masking(job)
        self.average = Average(job.model, decay=0.0)  # until prepare() has attached its hooks
        self.optimizer: Optimizer
        self.schedule: Schedule
        self.gradients: MeanGradients
        self.take: Step | Replay
        self.totals = Totals()
        self.compact = Compact(job.model, job.units)
        self.passes = Backward(job, self.compact if self.recipe.compact else self.model)

    def _agree(self, when: str) -> None:
        """Raise TeamError if plans or weights differ between processes."""
        if self.team.alone:
            return
        same = {"plan": self.masking.digest, "weights": self.gradients.digest()}
        self.team.check_same(same | self.average.digest(), when)

    def _check_finite(self) -> None:
        if (bad := self.totals.first_bad_step(self.team)) >= 0:
            raise self._diverged("loss", bad)

    def _diverged(self, what: str, step: int) -> DivergedError:
        where = f"epoch {self.epoch}, step {step} (phase {self.phases[self.phase_index].name!r})"
        return DivergedError(what, where, self.folder.last)

    def _share_buffers(self) -> None:
        for model in (self.model, *self.average.models):
            self.team.average_buffers(model)

    def _snapshot(self, name: str, model: nn.Module | None = None, **more: Any) -> None:
        self._share_buffers()
        self.folder.snapshot(name, self._state(model or self.model) | more)
        self.team.wait()

    def _state(self, model: nn.Module) -> dict[str, Any]:
        return {"model": model.state_dict(), "method": self.method.state_dict()}

    def _kept(self) -> dict[str, int]:
        score = f"validation/{self.job.task.main_score}"
        return kept(self.recipe, self.phases, self.curve.rows, score)

    def _restore(self, phase: Phase) -> None:
        if phase.start_from == "current":
            return
        if phase.start_from == "random":
            self.model.load_state_dict(self.job.fresh(self.phase_index))
        else:
            self.model.load_state_dict(self.folder.weights(phase.start_from, phase.name))
        self.average.restart()

    def _checkpoint(self) -> None:
        self._share_buffers()
        together = self.totals.over(self.team)  # continue in the first process, as after a resume
        self.totals = together if self.team.first else Totals()
        if not weights_are_finite(self.model):
            raise self._diverged("largest weight", self.step_in_epoch)
        self.folder.save(
            {
                "phase_index": self.phase_index,
                "counters": {k: getattr(self, k) for k in _COUNTERS},
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "method": self.method.state_dict(),
                "rng": rng_state(),
                "curve": self.curve.rows,
                "evaluations": self.evaluations.rows,
                "totals": self.totals.state_dict(),
                "observer": self.curve.observer.offset(),
                **self.average.state_dict(),
                **self.compact.held(),
            }
        )

    def _resume(self, saved: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.compact.restore(saved)
        for key, value in saved["counters"].items():
            setattr(self, key, value)
        self.evaluations.rows = saved["evaluations"]
        self.curve.resume(saved["curve"], saved["observer"], anew=self.folder.extended)
        self.folder.check_epochs(set(self._kept().values()))
        self.totals = Totals()
        if self.team.first:
            self.totals = Totals.restored(saved["totals"])
        restore_rng(saved["rng"])
