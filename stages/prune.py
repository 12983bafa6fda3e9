"""prune: a finished training -> plan and pruned network, artifacts/prune/<pruning>/."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import click
from torch import Tensor, nn
from torch import device as Device

from pipeline.data.loaders import make_train_batches
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.measure.count import structured_cost
from pipeline.measure.latency_cost import LatencyCost
from pipeline.selection.criteria import Batch
from pipeline.selection.masks import choose_weights, shuffled
from pipeline.selection.saliency import FROM_DATA, compute
from pipeline.selection.select import Context, Cost, select
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand, instance_option
from pipeline.study.execution.inputs import Inputs
from pipeline.study.execution.running import task_of
from pipeline.study.execution.runtime import log, stage_process
from pipeline.study.params.load import load_params
from pipeline.study.params.schema import PruningParams
from pipeline.study.records.artifacts import NetworkSpec, PrunedArtifact, TrainArtifact
from pipeline.study.records.counts import count_network
from pipeline.study.records.record import TrainRecord, read_record
from pipeline.units.groups import Units
from pipeline.units.layers import in_scope
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import apply_plan

CPU = Device("cpu")


def batches(pruning: PruningParams, prepared: Prepared, seed: int) -> list[Batch]:
    """Training batches for a saliency computed from data; an empty list for other saliencies."""
    if pruning.saliency not in FROM_DATA:
        return []
    size = pruning.saliency_batch_size
    train = make_train_batches(prepared, batch_size=size, seed=seed, augmented=False)
    return list(islice(train.epoch(0), pruning.saliency_batches))


def narrowed(
    saliency: dict[str, Tensor], pruning: PruningParams, model: nn.Module, units: Units
) -> dict[str, Tensor]:
    """The saliency of the groups or layers that may be pruned. The plan keeps all units without a
    saliency.

    Raises:
        ValueError: no group or layer may be pruned.
    """
    if pruning.layers != "all":
        names = choose_weights(model, units, pruning.layers)
        return {name: saliency[name] for name in names}
    if pruning.groups is None and not pruning.skip:
        return saliency
    chosen = in_scope(units.prunable, model, pruning.groups or "all", pruning.skip)
    found = {g.name: saliency[g.name] for g in chosen if g.name in saliency}
    if not found:
        raise ValueError(
            f"groups: {pruning.groups}, skip: {list(pruning.skip)} leave none of the "
            f"{len(saliency)} channel groups that {pruning.saliency!r} ranks; widen one of the two"
        )
    return found


def moved(plan: PruningPlan, pruning: PruningParams) -> PruningPlan:
    """The plan or, with `shuffle`, its control: the same number of weights, at random positions of
    the tensors that the plan prunes."""
    if pruning.shuffle == "none":
        return plan
    cut = {name: mask for name, mask in plan.keep.items() if not mask.all()}
    elsewhere = shuffled(cut, pruning.shuffle, pruning.shuffle_seed)
    return PruningPlan(plan.granularity, {**plan.keep, **elsewhere})


def costs(
    pruning: PruningParams, network: NetworkSpec, model: nn.Module, units: Units, place: Device
) -> tuple[Cost | None, float | None]:
    """The cost function of the target's rule, and the cost that the target is a fraction of (None:
    that of the dense network)."""
    rule, reference = pruning.target.rule, None
    if rule == "latency":
        probe = pruning.target.probe
        return LatencyCost(model, network.example(probe.batch_size).to(place), units, probe), None
    if rule not in ("macs", "params"):
        return None, None
    if pruning.reference is not None:
        standard = replace(network, args=pruning.reference).build()
        reference = getattr(count_network(network, standard), rule)
    uncounted = network.registered.uncounted
    return structured_cost(model, network.example(), units, rule, uncounted), reference


def run(
    pruning: PruningParams,
    source: TrainArtifact,
    prepared: Prepared,
    out: PrunedArtifact,
    place: Device = CPU,
) -> PruningPlan:
    """Rank the units, select by the target, mask or shrink, write. Latency is measured on
    `place`."""
    source.require(read_record(TrainRecord, paths.record("train", pruning.training)))
    network, model = source.network, source.model(pruning.at)
    units = network.units(model)
    granularity, seed = pruning.granularity or source.granularity, source.spec["seed"]
    if pruning.saliency == "method":
        saliency = source.saliency(pruning.at)
    else:
        task = task_of(network)
        seen = batches(pruning, prepared, seed)
        data = (seen, lambda net, batch: task.loss(net, batch)[0])
        saliency = compute(pruning.saliency, granularity, model, units, seed, data)
    saliency = narrowed(saliency, pruning, model, units)
    cost, reference = costs(pruning, network, model, units, place)
    context = Context.of(units, reference, seed)
    plan = select(saliency, granularity, pruning.target, cost, context)
    plan = moved(plan, pruning)
    spec = source.spec | {"at": pruning.at, "granularity": granularity.value}
    if isinstance(cost, LatencyCost):
        spec["latency"] = cost.summary(plan, pruning.target.value)
    apply_plan(plan, model, units)
    out.write(spec, plan, model)
    return plan


@click.command(cls=StageCommand, help=__doc__)
@instance_option("prune", "--pruning", "prunings")
def main(key: str) -> None:
    params = load_params()
    pruning, inputs = params.pruning(key), Inputs(params, "prune", key)
    with stage_process("prune", key, params.file.compute.threads) as place:
        source = TrainArtifact(paths.training(pruning.training))
        out, prepared = PrunedArtifact(paths.prune(key)), load_prepared(paths.PREPARED)
        plan = run(pruning, source, prepared, out, place.device)
        inputs.require_unchanged()
        log.info("%s: %d of %d units kept", key, plan.kept, plan.total)


if __name__ == "__main__":
    main()
