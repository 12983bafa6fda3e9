"""prune: a finished training -> plan and pruned network, artifacts/prune/<pruning>/."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import click

from pipeline.data.loaders import make_train_batches
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.study import paths
from pipeline.study.artifacts import PrunedArtifact, TrainArtifact
from pipeline.study.params import load_params
from pipeline.study.running import task_of
from pipeline.study.runtime import log, stage_process
from pipeline.study.schema import PruningParams
from pipeline.units.count import structured_cost
from pipeline.units.criteria import Batch
from pipeline.units.plan import PruningPlan
from pipeline.units.saliency import FROM_DATA, compute
from pipeline.units.selection import select
from pipeline.units.surgery import apply_plan


def batches(pruning: PruningParams, prepared: Prepared, seed: int) -> list[Batch]:
    """Training batches for a saliency that looks at data; none for the others."""
    if pruning.saliency not in FROM_DATA:
        return []
    size = pruning.saliency_batch_size
    train = make_train_batches(prepared, batch_size=size, seed=seed, augmented=False)
    return list(islice(train.epoch(0), pruning.saliency_batches))


def run(
    pruning: PruningParams, source: TrainArtifact, prepared: Prepared, out: PrunedArtifact
) -> PruningPlan:
    """Rank the units, cut to the target, mask or shrink, write."""
    network, model = source.network, source.model(pruning.at)
    units = network.units(model)
    granularity = pruning.granularity or source.granularity
    if pruning.saliency == "method":
        saliency = source.saliency(pruning.at)
    else:
        seed, task = source.spec["seed"], task_of(network)
        seen = batches(pruning, prepared, seed)
        data = (seen, lambda net, batch: task.loss(net, batch)[0])
        saliency = compute(pruning.saliency, granularity, model, units, seed, data)
    cost = reference = None
    if pruning.target.rule in ("macs", "params"):
        cost = structured_cost(
            model, network.example(), units, pruning.target.rule, network.registered.uncounted
        )
    if pruning.reference is not None:
        reference = getattr(
            network.count(replace(network, args=pruning.reference).build()),
            pruning.target.rule,
        )
    plan = select(saliency, granularity, pruning.target, cost, reference)
    apply_plan(plan, model, units)
    spec = source.spec | {"at": pruning.at, "granularity": granularity.value}
    out.write(spec, plan, model)
    return plan


@click.command(help=__doc__)
@click.option("--pruning", "key", required=True, help="an entry of `prunings` in params.yaml")
def main(key: str) -> None:
    params = load_params()
    pruning = params.pruning(key)
    with stage_process("prune", key, params.file.compute.threads):
        source = TrainArtifact(paths.training(pruning.training))
        plan = run(pruning, source, load_prepared(paths.PREPARED), PrunedArtifact(paths.prune(key)))
        log.info("%s: %d of %d units kept", key, plan.kept, plan.total)


if __name__ == "__main__":
    main()
