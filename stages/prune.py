"""prune: a finished training -> plan and pruned network, artifacts/prune/<pruning>/."""

from __future__ import annotations

import click

from pipeline.study import paths
from pipeline.study.artifacts import PrunedArtifact, TrainArtifact
from pipeline.study.params import load_params
from pipeline.study.runtime import log, stage_process
from pipeline.study.schema import PruningParams
from pipeline.units.count import structured_cost
from pipeline.units.plan import PruningPlan
from pipeline.units.saliency import compute
from pipeline.units.selection import select
from pipeline.units.surgery import apply_plan


def run(pruning: PruningParams, source: TrainArtifact, out: PrunedArtifact) -> PruningPlan:
    """Rank the units, cut to the target, mask or shrink, write."""
    network, model = source.network, source.model(pruning.at)
    units = network.units(model)
    granularity = pruning.granularity or source.granularity
    if pruning.saliency == "method":
        saliency = source.saliency(pruning.at)
    else:
        saliency = compute(pruning.saliency, granularity, model, units, source.spec["seed"])
    cost = None
    if pruning.target.rule in ("macs", "params"):
        cost = structured_cost(model, network.example(), units, pruning.target.rule)
    plan = select(saliency, granularity, pruning.target, cost)
    apply_plan(plan, model, units)
    spec = source.spec | {"at": pruning.at, "granularity": granularity.value}
    out.write(spec, plan, model)
    return plan


@click.command(help=__doc__)
@click.option("--pruning", "key", required=True, help="an entry of `prunings` in params.yaml")
def main(key: str) -> None:
    pruning = load_params().pruning(key)
    with stage_process("prune", key):
        source = TrainArtifact(paths.training(pruning.training))
        plan = run(pruning, source, PrunedArtifact(paths.prune(key)))
        log.info("%s: %d of %d units kept", key, plan.kept, plan.total)


if __name__ == "__main__":
    main()
