"""evaluate: test scores, counts, exactness and latency of a pruning -> its record."""

from __future__ import annotations

import click
from torch import nn

from pipeline.data.batches import EvalSource, Placement
from pipeline.data.loaders import make_eval_batches
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.measure.harness import cpu_threads, latency, output_difference
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand, instance_option
from pipeline.study.execution.inputs import Inputs
from pipeline.study.execution.running import task_of
from pipeline.study.execution.runtime import Workplace, stage_process
from pipeline.study.params.load import Params, load_params
from pipeline.study.params.schema import EvaluateParams, PruningParams
from pipeline.study.records.artifacts import DELIVERED, NetworkSpec, PrunedArtifact, TrainArtifact
from pipeline.study.records.counts import count_network
from pipeline.study.records.record import (
    Counts,
    CurvePoint,
    Difference,
    EvalRecord,
    Exactness,
    TrainRecord,
    read_record,
    sha,
    write_record,
)
from pipeline.study.records.states import EarlyStop, KeptState
from pipeline.study.tracking.run_views import RunSpec
from pipeline.study.tracking.tracker import Tracker, open_tracker
from pipeline.training.loop.early_stop import EARLY_STOP
from pipeline.training.tasks.task import Task
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity

LATENCY_SEARCH = (
    "asked",
    "achieved",
    *(f"{which}_{what}" for which in ("dense", "pruned") for what in ("ms", "iqr_ms")),
)


def exactness(
    pruned: PrunedArtifact, dense: nn.Module, zeros: bool, test: EvalSource
) -> Exactness | None:
    """Compare the shrunk network with the masked one and, for the rule "zeros", the dense one."""
    if not pruned.structured:
        return None
    shrunk = pruned.model()
    unchanged = Difference(*output_difference(dense, shrunk, test)) if zeros else None
    enforce(pruned.plan, dense, pruned.network.units(dense))
    return Exactness(Difference(*output_difference(dense, shrunk, test)), unchanged)


def counts(network: NetworkSpec, dense: nn.Module, final: nn.Module) -> Counts:
    """Parameters and MACs of the dense and the delivered network, counted on the CPU."""
    before, after = count_network(network, dense), count_network(network, final)
    return Counts(
        params_dense=before.params,
        params_kept=after.params,
        params_nonzero=after.params_nonzero,
        macs_dense=before.macs,
        macs_kept=after.macs,
        macs_nonzero=after.macs_nonzero,
    )


def weight_sparsity(dense: nn.Module, final: nn.Module, names: tuple[str, ...]) -> float:
    """Fraction of the convolution and linear weights that are removed or zero."""
    before, after = dense.state_dict(), final.state_dict()
    total = sum(before[n].numel() for n in names)
    left = sum(int(after[n].count_nonzero()) for n in names if n in after)
    return 1.0 - left / total


def achieved(pruned: PrunedArtifact) -> dict[str, float]:
    """The latency that the search for a `latency` target reached. It was measured once and stored
    with the plan, so that records are deterministic."""
    found = pruned.spec.get("latency")
    return {"achieved": found["achieved"]} if found else {}


def run(params: Params, key: str, prepared: Prepared, place: Workplace) -> EvalRecord:
    """Measure everything that is deterministic."""
    pruning = params.pruning(key)
    source = TrainArtifact(paths.training(pruning.training))
    pruned, delivered = PrunedArtifact(paths.prune(key)), PrunedArtifact(paths.finetune(key))
    training = read_record(TrainRecord, paths.record("train", pruning.training))
    source.require(training)
    network, retrained = source.network, delivered.spec["finetune"]
    test = make_eval_batches(
        prepared,
        prepared.test(),
        batch_size=params.file.evaluate.batch_size,
        placement=Placement(device=place.device),
    )
    task = task_of(network)
    dense, final = source.model(pruning.at), delivered.model()
    counted = counts(network, dense, final)
    units = network.units(dense)
    sparsity = weight_sparsity(dense, final, units.weights)
    dense.to(place.device)
    stopped = at_early_stop(pruning, training, source, delivered)
    return EvalRecord(
        pruning=key,
        training=pruning.training,
        training_sha=sha(training),
        model=training.model,
        method=training.method,
        data=training.data,
        seed=training.seed,
        at=pruning.at,
        granularity=pruned.plan.granularity.value,
        saliency=pruning.ranking,
        target=pruning.target.model_dump(mode="json") | achieved(pruned),
        finetune=retrained,
        finetuned=retrained["epochs"] > 0,
        dense=task.scores(dense, test),
        pruned=task.scores(pruned.model().to(place.device), test),
        final=task.scores(final.to(place.device), test),
        counts=counted,
        input_shape=network.info.input_shape,
        weight_sparsity=sparsity,
        group_sparsity=pruned.plan.sparsity if pruned.structured else None,
        plan_digest=pruned.plan.digest(),
        exactness=exactness(pruned, dense, pruning.target.rule == "zeros", test),
        finetune_curve=tuple(CurvePoint(**point) for point in delivered.spec["curve"]),
        early_stop=early_stop(stopped, task, test, place),
    )


def at_early_stop(
    pruning: PruningParams, training: TrainRecord, source: TrainArtifact, delivered: PrunedArtifact
) -> tuple[KeptState, nn.Module] | None:
    """The early stop of what was trained last, the retraining or else the phase of the pruned
    state, with the network there; None if no early stop was looked for.

    Without a retraining the mask must be the one under which that phase trained: a network that
    is masked already, or not pruned at all.
    """
    if delivered.spec["finetune"]["epochs"] > 0:
        return delivered.early_stop()
    states = training.kept or {}
    only = pruning.at == "final" and not any(name.startswith(f"{EARLY_STOP}-") for name in states)
    name = EARLY_STOP if only else f"{EARLY_STOP}-{pruning.at}"
    if name not in states or pruning.target.rule not in ("zeros", "none"):
        return None
    plan = delivered.plan
    if plan.granularity is Granularity.STRUCTURED:
        return None
    model = source.model(name)
    enforce(plan, model, source.network.units(model))
    return states[name], model


def early_stop(
    found: tuple[KeptState, nn.Module] | None, task: Task, test: EvalSource, place: Workplace
) -> EarlyStop | None:
    """The record of an early stop, with its test scores."""
    if found is None:
        return None
    state, model = found
    scores = task.scores(model.to(place.device), test)
    return EarlyStop(int(state.phase_step or 0), state.epochs, state.validation, scores)


def clock(key: str, settings: EvaluateParams, place: Workplace, tracker: Tracker) -> None:
    """Track wall-clock latency and file size of the delivered network, which no record holds."""
    delivered = PrunedArtifact(paths.finetune(key))
    model = delivered.model().to(place.device)
    values: dict[str, float] = {"size/file_bytes": float(delivered.file_bytes)}
    with cpu_threads(settings.latency_threads):
        for batch in settings.latency_batches:
            example = delivered.network.example(batch).to(place.device)
            took = latency(model, example, settings.latency_repeats)
            values[f"latency/batch{batch}_ms"] = took.median
            values[f"latency/batch{batch}_iqr_ms"] = took.spread
    if found := delivered.spec.get("latency"):
        values |= {f"latency/search_{k}": found[k] for k in LATENCY_SEARCH}
    values |= {f"exact/{k}_relative": v for k, v in delivered.spec.get("deliver", {}).items()}
    form = delivered.network.registered.delivery
    if form is not None:
        loaded = form.load(delivered.folder / DELIVERED).to(place.device)
        pair = (delivered.network.example(2).to(place.device), None)
        values["exact/delivered_max_abs"] = output_difference(model, loaded, [pair])[0]
    tracker.metrics(values | {"latency/threads": float(settings.latency_threads)})
    tracker.note(f"latency measured on {place.device}")


@click.command(cls=StageCommand, help=__doc__)
@instance_option("evaluate", "--pruning", "prunings")
def main(key: str) -> None:
    params = load_params()
    inputs = Inputs(params, "evaluate", key)
    with stage_process("evaluate", key, params.file.compute.threads) as place:
        record = run(params, key, load_prepared(paths.PREPARED), place)
        spec = RunSpec("evaluate", key, params.file.study, {}, {"pruning": key})
        with open_tracker(spec, paths.events("evaluate", key), live=False) as tracker:
            clock(key, params.file.evaluate, place, tracker)
        inputs.require_unchanged()
        write_record(paths.record("evaluate", key), record)


if __name__ == "__main__":
    main()
