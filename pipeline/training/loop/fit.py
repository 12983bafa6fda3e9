"""The only training loop.

    snapshots["init"] = clone of the weights
    method.prepare(model, units)
    for phase in method.phases(recipe):
        restore(phase.start_from); enforce(plan)       a rewound model meets its first batch masked
        optimizer, schedule = method.optimizer(...), method.schedule(...)
        for each epoch of the phase:
            [snapshots["rewind"] after recipe.rewind_epoch epochs or rewind_step steps]
            for each batch:
                loss = task.loss + method.penalty
                backward, [mean over processes], method.after_backward, clip,
                optimizer.step, method.after_step, enforce, [average]
                [validate every recipe.evaluate_steps steps]
            validate, stop = method.end_epoch, enforce, schedule.step, [remove zero channels],
            checkpoint
            if stop: break
        method.end_phase(phase)                        e.g. tighten the mask
        [the phase's state becomes a named artefact]
    [so do the states of recipe.keep_epochs, keep_best, ema_decay and evaluate_steps]

Nothing else in the project steps an optimizer. On one device, a training resumed from any
checkpoint ends with the same bits as an uninterrupted one: order and augmentation of the data
depend only on (seed, epoch, step), and the checkpoint holds everything else. Each process of a
`Team` runs this loop on its part of every batch; all hold the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from time import perf_counter
from typing import Any

from pipeline.training.loop.checkpoint import CheckpointFolder, seed_everything
from pipeline.training.loop.distributed import MeanGradients
from pipeline.training.loop.job import FirstEpoch, Job, Observer
from pipeline.training.loop.named_states import check
from pipeline.training.loop.passes import Backward
from pipeline.training.loop.state import LoopState
from pipeline.training.loop.step import Step
from pipeline.training.loop.totals import Totals
from pipeline.training.options.compiled import check_compiler, compiled
from pipeline.training.options.cuda_graph import Replay, captured_on_gpu, check_replay, own_stream
from pipeline.training.options.denormal import flushed
from pipeline.training.options.ema import EMA, Average
from pipeline.training.phases import EpochStats, Phase, StepContext

CHECK_STEPS = 50  # steps between checks for a non-finite loss; a check waits for the device


def fit(job: Job, folder: CheckpointFolder, observer: Observer) -> list[dict[str, Any]]:
    """Train `job.model` in place; resume from `folder` if it holds a checkpoint.

    Afterwards `folder.snapshots()` has "init", "rewind", every phase with `keep`, the states that
    the recipe names (`named_states.names`) and those of the method (`Method.states`). Each is a
    tree with the state of "model" and "method".

    Returns:
        The rows of the curve (`Curve`), whose "values" are deterministic numbers by name.

    Raises:
        DivergedError: the loss is not finite; names the step and the last good checkpoint.
        ValueError: the recipe names a state that this training cannot have, or its `steps` and
            `epochs` do not agree.
        CompileError: `compile: true` without a compiler.
        ReplayError: `cuda_graph: true` where steps cannot be captured.
        DamagedFileError: the checkpoint is damaged.
    """
    check_replay(job)
    with own_stream(job), flushed(job.recipe.flush_denormal):
        return _Loop(job, folder, observer).run()


class _Loop(LoopState):
    """The steps of a training. Its methods implement the lines of the module docstring."""

    def run(self) -> list[dict[str, Any]]:
        check(self.recipe, self.phases, self.job.validation is not None)
        if self.recipe.compile:
            check_compiler(self.job.device)
        seed_everything(self.job.seed)
        self.team.wait()  # the first process may have to set a checkpoint aside
        saved = self.folder.load()
        self.team.wait()
        if saved is None:
            self.curve.observer.begin()
            self._snapshot("init")
            if not (self.recipe.rewind_step or self.recipe.rewind_epoch):
                self._snapshot("rewind")
        first = FirstEpoch(self.job.train, self.job.task)
        self.method.prepare(self.model, self.job.units, first)
        self.average = Average(self.model, self.recipe.ema_decay)
        self.masking.models += self.average.models
        if self.recipe.compile:
            self.passes = Backward(self.job, compiled(self.model))
        for index, phase in enumerate(self.phases):
            if saved is not None and index < saved["phase_index"]:
                continue
            self.phase_index = index
            self._begin(phase, saved)
            saved = None
            self._run_phase(phase)
        self.folder.name_epochs(self._kept())
        if self.average.model is not None:
            self._snapshot(EMA, self.average.model)
        self.folder.finish_evaluations(self.evaluations.rows)
        self.team.wait()
        return self.curve.rows

    def _begin(self, phase: Phase, saved: Mapping[str, Any] | None) -> None:
        if saved is not None:
            self.method.load_state_dict(saved["method"])
            self.model.load_state_dict(saved["model"])
            self.average.load_state_dict(saved)
        else:
            self._restore(phase)
            self.phase_epoch = self.phase_step = self.step_in_epoch = 0
            if phase.start_from == "rewind":
                self.step_in_epoch = (self.recipe.rewind_step or 0) % len(self.job.train)
            self.stop = False
        self.optimizer = self.method.optimizer(self.model, phase, self.recipe)
        self.schedule = self.method.schedule(self.optimizer, phase, self.recipe)
        self.gradients = MeanGradients(self.team, self.model, self.optimizer)
        self._remove_zeros()
        if saved is not None:
            self._resume(saved)
        self.masking.apply()
        step = Step(self.job, self.passes, self.masking, self.optimizer, self.gradients)
        self.take = Replay(step, captured_on_gpu) if self.recipe.cuda_graph else step
        self._agree(f"at the start of phase {phase.name!r}")

    def _run_phase(self, phase: Phase) -> None:
        while self.phase_epoch < phase.epochs and not self.stop:
            self._run_epoch(phase)
        self.method.end_phase(self.model, phase)
        if phase.keep:
            self._snapshot(phase.name)

    def _run_epoch(self, phase: Phase) -> None:
        began = perf_counter()
        self.model.train()
        for batch in self._batches(phase):
            self._train_step(batch, phase)
            every = self.recipe.checkpoint_steps
            if every and self.step_in_epoch % every == 0:
                self._check_finite()
                self._checkpoint()
        self._check_finite()
        self._share_buffers()
        totals = self.totals.over(self.team)
        self.examples += totals.count
        stats = EpochStats(self.epoch, self.phase_epoch, totals.means(), self.passes.validate())
        stats.logged |= self.average.scores(self.job)
        self.stop = self.method.end_epoch(self.model, stats)
        self.masking.apply()
        self._agree(f"after epoch {self.epoch}")
        row = {**stats.values(), "lr": float(self.optimizer.param_groups[0]["lr"])}
        row["examples"] = float(self.examples)
        self.curve.add(self.epoch, self.step, phase.name, row, perf_counter() - began)
        self.schedule.step(stats)
        self.epoch += 1
        self.phase_epoch += 1
        self.step_in_epoch = 0
        self.totals = Totals()
        if self.recipe.rewind_step is None and self.epoch == self.recipe.rewind_epoch:
            self._snapshot("rewind")
        for name in stats.keep:
            self._snapshot(name)
        wanted = set(self._kept().values())
        if self.epoch in wanted:
            self.folder.keep_epoch(self.epoch, self._state(self.model))
        self._remove_zeros()
        self._checkpoint()
        self.folder.drop_epochs(wanted)

    def _remove_zeros(self) -> None:
        if self.recipe.compact:
            self.compact.remove(self.method.permanently_zero(self.model))

    def _batches(self, phase: Phase) -> Iterator[Any]:
        part = () if self.team.alone else (self.team.part,)
        batches = self.job.train.epoch(self.epoch, self.step_in_epoch, *part)
        if phase.lr_epoch + self.phase_epoch + 1 != self.recipe.epochs:
            return batches
        return islice(batches, self.last_epoch_steps - self.step_in_epoch)

    def _train_step(self, batch: Any, phase: Phase) -> None:
        self.schedule.within(self.step_in_epoch / len(self.job.train))
        at = StepContext(phase, self.step, self.phase_step, len(self.job.train), epoch=self.epoch)
        batch = self.passes.blended(batch, self.step, self.step_in_epoch)
        loss, sums = self.take(batch, at)
        self.totals.add(loss, sums, self.job.task.size(batch), self.step_in_epoch)
        self.average.update()
        self.step += 1
        self.phase_step += 1
        self.step_in_epoch += 1
        if self.step == self.recipe.rewind_step:
            self._snapshot("rewind")
        if self.step_in_epoch % CHECK_STEPS == 0:
            self._check_finite()
        if self.evaluations.due(self.phase_step):
            self._evaluate(phase)

    def _evaluate(self, phase: Phase) -> None:
        self._check_finite()
        self._share_buffers()
        scores = self.passes.validate()
        whole = self.epoch + (self.step_in_epoch == len(self.job.train))
        row = {"phase": phase.name, "phase_step": self.phase_step, "step": self.step}
        row |= {"epochs": whole, "validation": scores}
        told = {f"evaluation/{name}": value for name, value in scores.items()}
        self.curve.observer.metrics(told, epoch=self.epoch, step=self.step)
        for name in self.evaluations.add(row, phase):
            self._snapshot(name, early_stop=row)
