"""finetune: retrain a pruned network -> artifacts/finetune/<pruning>/, what is delivered."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click
from torch import nn

from pipeline.data.prepared import Prepared, load_prepared
from pipeline.files import load_tree
from pipeline.selection.masks import count_of
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand, instance_option
from pipeline.study.execution.inputs import Inputs
from pipeline.study.execution.launch import launched
from pipeline.study.execution.running import FRESH_STREAM, Assignment, fresh_state, train_network
from pipeline.study.execution.runtime import Workplace, loop_code, stage_process
from pipeline.study.params.load import Params, load_params
from pipeline.study.params.schema import MatchCost
from pipeline.study.records.artifacts import NetworkSpec, PrunedArtifact, TrainArtifact
from pipeline.study.records.counts import count_network
from pipeline.study.records.delivered import require_forms, write_forms
from pipeline.study.tracking.run_views import RunSpec
from pipeline.study.tracking.tracker import open_tracker
from pipeline.training.loop.checkpoint import CheckpointFolder, retire
from pipeline.training.loop.early_stop import EARLY_STOP
from pipeline.training.loop.job import Observer, Silent
from pipeline.training.method import MethodBase
from pipeline.training.options.ema import EMA
from pipeline.training.recipe import Recipe
from pipeline.units.surgery import apply_plan


def start(network: NetworkSpec, params: Params, key: str, pruned: PrunedArtifact) -> nn.Module:
    """The pruned network with the weights that retraining starts from."""
    pruning, how = params.pruning(key), params.retraining(key).start_from
    if how == "current":
        return pruned.model()
    seed = params.training(pruning.training).seed + FRESH_STREAM * (1 + pruning.finetune.draw)
    source = TrainArtifact(paths.training(pruning.training))
    model = network.build()
    model.load_state_dict(fresh_state(network, seed) if how == "random" else source.weights(how))
    apply_plan(pruned.plan, model, network.units(model))
    return model


def recipe_of(network: NetworkSpec, params: Params, key: str, model: nn.Module) -> Recipe:
    """The recipe with the requested epochs. `{match: ...}` takes as many MACs as the recipe's
    epochs would on the dense network, or on the pruning's reference."""
    recipe, wanted = params.retraining_recipe(key), params.retraining(key).epochs
    if not isinstance(wanted, MatchCost):
        return recipe.model_copy(update={"epochs": wanted})
    pruning = params.pruning(key)
    if wanted.match == "target":
        factor = 1.0 / (1.0 - pruning.target.value)
    else:
        whole = network
        if pruning.reference is not None:
            whole = replace(network, args=pruning.reference)
        factor = count_network(network, whole.build()).macs / count_network(network, model).macs
    if wanted.cap is not None:
        factor = min(factor, wanted.cap)
    made = recipe.stretched(factor)
    if wanted.match == "target":  # the authors of gates truncate
        made = made.model_copy(update={"epochs": count_of(factor, recipe.epochs)})
    return made


def run(params: Params, key: str, prepared: Prepared, place: Workplace, observer: Observer) -> None:
    """Retrain for the requested epochs (0: deliver as pruned) and write the artefact: the last
    weights, or their average if the recipe has `ema_decay`."""
    pruned = PrunedArtifact(paths.prune(key))
    network = pruned.network
    model = start(network, params, key, pruned)
    how, forms = params.retraining(key).start_from, params.retraining(key).deliver
    require_forms(forms, network)
    recipe = recipe_of(network, params, key, model)
    draw = params.pruning(key).finetune.draw
    drawn = {"draw": draw} if draw else {}
    inputs = {
        "recipe": recipe.model_dump(mode="json"),
        "start_from": how,
        **drawn,
        "plan": pruned.plan.digest(),
        "weights": pruned.weights_sha,
        "code": loop_code(Path(params.file.root)),
        "device": place.device.type,
    }
    units, masks = network.units(model), None if pruned.structured else pruned.plan
    seed = params.training(params.pruning(key).training).seed
    work = Assignment(network, model, units, MethodBase(), recipe, seed, masks)
    folder = CheckpointFolder(place.folder, inputs, writes=place.team.first)
    curve = train_network(work, prepared, place, folder, observer) if recipe.epochs else ()
    if not place.team.first:
        return
    facts = {"start_from": how, **recipe.model_dump(mode="json"), **drawn}
    if recipe.ema_decay and recipe.epochs:
        model.load_state_dict(load_tree(folder.snapshots()[EMA])["model"])
        facts["delivered"] = EMA
    spec = pruned.spec | {"finetune": facts, "curve": [asdict(point) for point in curve]}
    delivered = PrunedArtifact(paths.finetune(key))
    if found := write_forms(model, network, forms, delivered.folder):
        spec |= {"deliver": found}
    delivered.write(spec, pruned.plan, model)
    if (early := folder.snapshots().get(EARLY_STOP)) is not None:
        delivered.write_early_stop(load_tree(early))


@click.command(cls=StageCommand, help=__doc__)
@instance_option("finetune", "--pruning", "prunings")
def main(key: str) -> None:
    params = load_params()
    inputs = Inputs(params, "finetune", key)
    live = params.retraining(key).epochs != 0
    if live and launched("finetune", ("--pruning", key), params.file.compute.processes):
        return
    with stage_process("finetune", key, params.file.compute.threads) as place:
        if not place.team.first:
            run(params, key, load_prepared(paths.PREPARED), place, Silent())
            return
        spec = RunSpec("finetune", key, params.file.study, {}, {"pruning": key})
        work = place.folder.with_suffix(".events.jsonl")
        events = paths.events("finetune", key)
        with open_tracker(spec, events, work=work, live=live) as tracker:
            run(params, key, load_prepared(paths.PREPARED), place, tracker)
            inputs.require_unchanged()
        retire(place.folder)


if __name__ == "__main__":
    main()
