"""The delivered network as an MLflow model, which can be loaded and served with MLflow and torch,
without this code. Opt-in (`deliver` in params.yaml), because an export takes seconds."""

from __future__ import annotations

import torch

from pipeline.study.execution.runtime import log
from pipeline.study.records.artifacts import PrunedArtifact
from pipeline.study.records.record import EvalRecord, from_json
from pipeline.study.tracking.run_views import RunView
from pipeline.study.tracking.store import open_store


def deliver(study: str, view: RunView, artifact: PrunedArtifact) -> str | None:
    """Log the network of an evaluate run once. Returns the model's URI; None without the artefact.

    Raises:
        ValueError: the record was measured on another artefact.
    """
    if not (artifact.folder / "spec.json").is_file():
        log.warning("%s is not here: `dvc pull` or `dvc repro` brings it back", artifact.folder)
        return None
    record = from_json(EvalRecord, view.document, view.name)
    if artifact.plan.digest() != record.plan_digest:
        raise ValueError(
            f"{artifact.folder}: not the plan of the record of {view.key!r}; run `dvc repro`"
        )
    store, mark = open_store(study), artifact.weights_sha
    (run,) = store.runs(f"attributes.status = 'FINISHED' AND tags.record_sha = '{view.sha}'")
    if run.data.tags.get("model_sha") == mark and store.has_model(run.data.tags["model_uri"]):
        return str(run.data.tags["model_uri"])
    example = torch.cat([artifact.network.example()] * 2).numpy()
    tags = {"model_sha": mark, "plan_digest": record.plan_digest, "record_sha": view.sha}
    name, run_id = f"{study}-{view.key}", run.info.run_id
    uri = store.log_network(run_id, name, artifact.model().eval(), example, tags)
    store.describe(run_id, {}, {"model_sha": mark})
    log.info("%s is the MLflow model %s, %s", view.key, name, uri)
    return uri
