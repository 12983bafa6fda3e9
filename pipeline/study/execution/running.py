"""Run `fit` for the stages train and finetune, from a recipe and a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pipeline.data.batches import Placement
from pipeline.data.loaders import make_eval_batches, make_train_batches
from pipeline.data.prepared import Prepared
from pipeline.files import load_tree
from pipeline.study.execution.progress import Progress
from pipeline.study.execution.runtime import Workplace
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.record import CurvePoint
from pipeline.study.records.states import KeptState
from pipeline.training.loop.checkpoint import CheckpointFolder, State, clone_state
from pipeline.training.loop.early_stop import EARLY_STOP
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job, Observer
from pipeline.training.loop.last_batch import require_normalisable
from pipeline.training.loop.named_states import kept
from pipeline.training.method import Method
from pipeline.training.options.ema import EMA
from pipeline.training.recipe import Recipe
from pipeline.training.tasks.task import TASKS, Task
from pipeline.units.groups import Units
from pipeline.units.plan import PruningPlan

FRESH_STREAM = 7919  # seeds re-initialised networks differently from the training


@dataclass(frozen=True)
class Assignment:
    """One network to train: the model with its present weights, its units, and the settings."""

    network: NetworkSpec
    model: nn.Module
    units: Units
    method: Method
    recipe: Recipe
    seed: int
    plan: PruningPlan | None = None


def train_network(
    assignment: Assignment,
    prepared: Prepared,
    place: Workplace,
    folder: CheckpointFolder,
    observer: Observer,
) -> tuple[CurvePoint, ...]:
    """Run `fit` on the training split of `prepared`, validating on its validation split.

    The model ends on the CPU, trained; named states are in `folder.snapshots()`.

    Raises:
        ValueError: the processes of `place` cannot share this training, or its last batch has one
            example, which BatchNorm cannot normalise.
    """
    a, recipe = assignment, assignment.recipe
    _check_team(recipe, place)
    examples = prepared.card["counts"]["train"].get("total", 0)  # SQuAD: of no BatchNorm network
    require_normalisable(a.model, prepared.info.input_shape, examples, recipe.batch_size)
    placement = Placement(device=place.device, channels_last=recipe.channels_last)
    validation = prepared.validation()
    form = torch.channels_last if recipe.channels_last else torch.contiguous_format
    if recipe.sync_batchnorm and not place.team.alone:
        nn.SyncBatchNorm.convert_sync_batchnorm(a.model)  # its layers, in place; same state
    a.model.to(place.device, memory_format=form)
    seed = a.seed if recipe.data_seed is None else recipe.data_seed
    batches = make_train_batches(
        prepared, batch_size=recipe.batch_size, seed=seed, placement=placement
    )
    epochs = sum(p.epochs for p in a.method.phases(recipe.placed(len(batches))))
    progress = Progress(observer, batches, epochs) if place.team.first else None
    job = Job(
        model=a.model,
        units=a.units,
        method=a.method,
        task=task_of(a.network, recipe.label_smoothing),
        recipe=recipe,
        train=batches if progress is None else progress,
        validation=None
        if validation is None
        else make_eval_batches(prepared, validation, batch_size=512, placement=placement),
        seed=a.seed,
        device=place.device,
        fresh=lambda phase: fresh_state(a.network, a.seed + (phase + 1) * FRESH_STREAM),
        keep=a.plan,
        team=place.team,
    )
    try:
        curve = fit(job, folder, observer if progress is None else progress)
    finally:
        if progress is not None:
            progress.close()
    a.model.to("cpu", memory_format=torch.contiguous_format)
    return tuple(curve_point(row) for row in curve)


def named_states(
    assignment: Assignment, curve: Sequence[CurvePoint], folder: CheckpointFolder
) -> dict[str, KeptState] | None:
    """The states that the recipe names, for the record of a finished training; None if it names
    none."""
    a, rows = assignment, [asdict(point) for point in curve]
    score = f"validation/{task_of(a.network).main_score}"
    found = kept(a.recipe, a.method.phases(a.recipe), rows, score)
    scores = [_scores(point, "validation") for point in curve]
    states = {name: KeptState(e, scores[e - 1]) for name, e in found.items()}
    if a.recipe.ema_decay and curve:
        states[EMA] = KeptState(len(curve), _scores(curve[-1], EMA))
    for name, path in folder.snapshots().items():
        if name.startswith(EARLY_STOP) and (row := load_tree(path).get("early_stop")):
            states[name] = KeptState(
                row["epochs"], row["validation"], row["step"], row["phase_step"]
            )
    return states or None


def _scores(point: CurvePoint, whose: str) -> dict[str, float]:
    """Scores of the network itself ("validation") or of its average ("ema")."""
    prefix = f"{whose}/"
    return {k.removeprefix(prefix): v for k, v in point.values.items() if k.startswith(prefix)}


def _check_team(recipe: Recipe, place: Workplace) -> None:
    """
    Raises:
        ValueError: several processes cannot train this way; says what to change.
    """
    if place.team.alone:
        return
    if recipe.batch_size < 2 * place.team.size:
        raise ValueError(
            f"params.yaml: batch_size: {recipe.batch_size} is less than two examples for each of "
            f"the {place.team.size} processes of compute.processes (it is the size of the whole "
            "batch)"
        )
    if recipe.sync_batchnorm and place.device.type == "cpu":
        raise ValueError(
            "params.yaml: sync_batchnorm: true works on GPUs only; set it to false or "
            "compute.processes: 1"
        )


def task_of(network: NetworkSpec, label_smoothing: float = 0.0) -> Task:
    """The task that `network` is registered for."""
    return TASKS[network.registered.task](network.info.num_classes, label_smoothing)


def fresh_state(network: NetworkSpec, seed: int) -> State:
    """Initial weights for another seed. Does not change the global generators."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return clone_state(network.build())


def curve_point(row: dict[str, Any]) -> CurvePoint:
    """A row of the loop's curve as the record holds it."""
    return CurvePoint(int(row["epoch"]), int(row["step"]), str(row["phase"]), dict(row["values"]))
