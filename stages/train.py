"""train: one model, one method, one seed -> artifacts/train/<training>/."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click
from torch import nn

from pipeline import registry
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.files import file_sha256, load_tree, read_json, tensors_sha256, write_json
from pipeline.study import paths
from pipeline.study.execution.commands import StageCommand, instance_option
from pipeline.study.execution.inputs import Inputs
from pipeline.study.execution.launch import launched
from pipeline.study.execution.running import Assignment, named_states, train_network
from pipeline.study.execution.runtime import (
    Workplace,
    code_digest,
    loop_code,
    method_code,
    stage_process,
)
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.artifacts import NetworkSpec, TrainArtifact
from pipeline.study.records.record import TrainRecord, write_record
from pipeline.study.tracking.record_views import train_view, training_spec
from pipeline.study.tracking.tracker import open_tracker
from pipeline.training.loop.checkpoint import (
    CheckpointFolder,
    Lineage,
    clone_state,
    fingerprint,
    retire,
    seed_everything,
)
from pipeline.training.loop.job import Observer, Silent
from pipeline.training.method import Method
from pipeline.training.weights import load_weights, located
from pipeline.units.groups import Units


def draft(params: Params, key: str) -> TrainRecord:
    """The record of a training before it runs: settings without results."""
    training, recipe = params.training(key), params.recipe(key)
    parents = {"data": file_sha256(paths.CARD)}
    if training.weights is not None:
        parents["weights"] = training.weights.sha256
    return TrainRecord(
        training=key,
        model=f"{training.model.family}/{training.model.name}",
        model_args=training.model.args,
        method=training.method,
        method_params=params.method_config(key).model_dump(mode="json"),
        recipe=recipe.model_dump(mode="json"),
        data=params.file.data.name,
        seed=training.seed,
        parents=parents,
        curve=(),
        weights_sha="",
    )


def run(
    params: Params, key: str, prepared: Prepared, place: Workplace, observer: Observer
) -> TrainRecord:
    """Train, write the artefact, return the record. Processes other than the first return the
    draft."""
    training, asked = params.training(key), draft(params, key)
    network = NetworkSpec.of(training.model, prepared.info)
    method = registry.method_spec(training.method).build(params.method_config(key))
    folder = _checkpoints(params, asked, method, place)
    seed_everything(training.seed)
    model = network.build()
    if training.weights is not None:
        w = training.weights
        load_weights(model, located(w.path), w.sha256, w.prefix, w.into)
    units = network.units(model)
    task = Assignment(network, model, units, method, params.recipe(key), training.seed)
    curve = train_network(task, prepared, place, folder, observer)
    if not place.team.first:
        return asked
    artifact = TrainArtifact(paths.training(key))
    _write_states(artifact, folder, model, method, units)
    code = code_digest(Path(params.file.root), f"models/{network.family}.py")
    spec = {"network": network.to_json(), "training": key, "method": training.method, "code": code}
    more = {"granularity": method.granularity.value, "seed": training.seed}
    write_json(artifact.folder / "spec.json", spec | more)
    sha, states = tensors_sha256(model.state_dict()), named_states(task, curve, folder)
    return replace(asked, curve=curve, weights_sha=sha, kept=states)


def _checkpoints(
    params: Params, asked: TrainRecord, method: Method, place: Workplace
) -> CheckpointFolder:
    """The checkpoint folder, with all inputs that determine the result. The lineage excludes
    settings that only add phases at the end: this training extends a finished one with fewer."""
    family, recipe = asked.model.partition("/")[0], params.recipe(asked.training)
    root, stated = Path(params.file.root), asdict(asked)
    code = code_digest(root, f"models/{family}.py") | method_code(root, asked.method)
    ran = {"code": code | loop_code(root), "device": place.device.type}
    lineage, added = None, method.extendable()
    if added:
        shared = {k: v for k, v in asked.method_params.items() if k not in added}
        mark = fingerprint(stated | {"method_params": shared}, ran)
        lineage = Lineage(mark, len(method.phases(recipe)))
    return CheckpointFolder(place.folder, stated | ran, place.team.first, lineage)


def _write_states(
    artifact: TrainArtifact,
    folder: CheckpointFolder,
    model: nn.Module,
    method: Method,
    units: Units,
) -> None:
    """Write the final state, then every snapshot, each with the method's saliency in that state."""
    weights, state = clone_state(model), method.state_dict()
    final = method.saliency(model, units)
    for name, path in folder.snapshots().items():
        tree = load_tree(path)
        scores = None
        if name not in ("init", "rewind"):
            model.load_state_dict(tree["model"])
            method.load_state_dict(tree["method"])
            scores = method.saliency(model, units)
        artifact.write_state(name, tree["model"], scores)
    if folder.evaluations.exists():
        write_json(artifact.folder / folder.evaluations.name, read_json(folder.evaluations))
    model.load_state_dict(weights)
    method.load_state_dict(state)
    method.release(model)
    artifact.write_state("final", clone_state(model), final)


@click.command(cls=StageCommand, help=__doc__)
@instance_option("train", "--training", "trainings")
def main(key: str) -> None:
    params = load_params()
    inputs = Inputs(params, "train", key)
    if launched("train", ("--training", key), params.file.compute.processes):
        return
    prepared = load_prepared(paths.PREPARED)
    with stage_process("train", key, params.file.compute.threads) as place:
        if not place.team.first:
            run(params, key, prepared, place, Silent())
            return
        spec = training_spec(draft(params, key), params.file.study, {})
        work = place.folder.with_suffix(".events.jsonl")
        with open_tracker(spec, paths.events("train", key), work=work) as tracker:
            record = run(params, key, prepared, place, tracker)
            inputs.require_unchanged()
            write_record(paths.record("train", key), record)
            tracker.finish(train_view(record))
        retire(place.folder)


if __name__ == "__main__":
    main()
