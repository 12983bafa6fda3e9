"""The tracking server, reduced to the operations of this project. The only importer of mlflow.

Importing this module costs nothing and works without mlflow. Stages use `tracker.open_tracker`,
reports `open_store`. The server is MLFLOW_TRACKING_URI, else `mlflow.db` in the study's folder with
`mlartifacts/` beside it. MLFLOW_RUN_ID is not read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import write_text
from pipeline.study.tracking.database import (
    ARTIFACTS,
    local_path,
    make_ready,
    metric_counts,
    sqlite_file,
    tracking_uri,
)
from pipeline.study.tracking.run_views import Point, RunView, parts
from pipeline.study.tracking.saved_views import view_tags, views_guide

_METRICS_PER_CALL, _TEXTS_PER_CALL = 500, 90  # the REST interface takes 1000 and 100
_DOCUMENT = "record.json"
_KIND = "custom_model_development"  # otherwise MLflow opens its pages for language models
SEALED = "attributes.status = 'FINISHED' AND tags.record_sha != ''"
_SETTINGS = {
    # With MLflow's own settings one call to a server that is down blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DO_NOT_TRACK": "true",
}
_opened: dict[tuple[str, str], tuple[Store, tuple[Path | None, int]]] = {}


def open_store(experiment: str) -> Store:
    """The store of an experiment. A process opens it once, and again only if its file was replaced.

    Raises: as `Store`.
    """
    uri = tracking_uri()
    database = sqlite_file(uri)
    file = database.stat().st_ino if database is not None and database.exists() else 0
    found = _opened.get((experiment, uri))
    if found is None or found[1] != (database, file):
        store = Store(experiment, uri)
        file = database.stat().st_ino if database is not None else 0
        found = _opened[experiment, uri] = store, (database, file)
    return found[0]


def load_libraries(local: bool = False) -> Any:
    """Import MLflow under our settings, with the database of a `local` store; returns it."""
    os.environ.update(_SETTINGS | os.environ)
    import mlflow

    if local:
        import mlflow.store.tracking.sqlalchemy_store
    return mlflow


class Store:
    """One MLflow experiment: the operations that this project needs, on its own entities.

    Raises:
        ImportError: mlflow is not installed.
        mlflow.exceptions.MlflowException: the server does not answer; every method may raise it.
    """

    def __init__(self, experiment: str, uri: str | None = None) -> None:
        mlflow = load_libraries()
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # raised as well
        self.uri = uri or tracking_uri()
        self.experiment = experiment
        database = sqlite_file(self.uri)
        with self.lock():
            if database is not None:
                make_ready(database, _make_tables)
            self._client = mlflow.MlflowClient(tracking_uri=self.uri)
            self._id = self._experiment_id(experiment)

    @contextlib.contextmanager
    def lock(self, purpose: str = "init") -> Iterator[None]:
        """Admit one process at a time if the store is a local file; a server does its own locking.
        Two processes that create the same SQLite file at once damage it irreparably."""
        database = sqlite_file(self.uri)
        if database is None:
            yield
            return
        import fcntl

        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_name(f"{database.name}-{purpose}.lock").open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    @property
    def experiment_id(self) -> str:
        """MLflow's number of the experiment."""
        return self._id

    def runs(self, where: str) -> list[Any]:
        """mlflow.entities.Run of the experiment that match an MLflow filter, oldest first."""
        found, token = [], None
        while True:
            page = self._client.search_runs(
                [self._id], where, max_results=1000, order_by=["start_time ASC"], page_token=token
            )
            found += list(page)
            token = page.token
            if not token:
                return found

    def sealed(self) -> dict[str, Any]:
        """Finished runs by record hash; the older one if there are two."""
        return {run.data.tags["record_sha"]: run for run in reversed(self.runs(SEALED))}

    def metric_counts(self) -> dict[tuple[str, str], int] | None:
        """Number of steps by (run id, metric) of a local file, by one query; None: a server."""
        database = sqlite_file(self.uri)
        return None if database is None else metric_counts(database)

    def create(self, name: str, tags: Mapping[str, str], started: float | None = None) -> str:
        """A new run in state RUNNING; returns its id."""
        at = None if started is None else round(started * 1000)
        run = self._client.create_run(self._id, start_time=at, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        """Log metrics, in as few calls as the interface allows."""
        from mlflow.entities import Metric

        now = time.time()
        rows = [
            Metric(p.name, p.value, round((now if p.time is None else p.time) * 1000), p.step)
            for p in points
        ]
        for part in parts(rows, _METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=part)

    def describe(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Set params (immutable once set) and tags."""
        from mlflow.entities import Param, RunTag

        for part in parts([Param(k, v) for k, v in params.items()], _TEXTS_PER_CALL):
            self._client.log_batch(run_id, params=part)
        for part in parts([RunTag(k, v) for k, v in tags.items()], _TEXTS_PER_CALL):
            self._client.log_batch(run_id, tags=part)

    def attach(self, run_id: str, view: RunView) -> None:
        """Attach the record as an artifact and the data set as an input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        self.attach_document(run_id, view.document)
        name, digest = view.data
        dataset = Dataset(name, digest[:8] or "none", "local", '{"source": "data/prepared"}')
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", view.stage)])]
        with contextlib.suppress(MlflowException):
            self._client.log_inputs(run_id, inputs)
            return
        self._client.log_inputs(run_id, inputs)  # another writer had inserted the same data set

    def attach_document(self, run_id: str, document: str) -> None:
        """Attach the record as an artifact."""
        path = self._artifacts(run_id)
        if path is None:
            self._client.log_text(run_id, document, _DOCUMENT)
        else:  # not through the client, which caches the former location of a run's artifacts
            write_text(path / _DOCUMENT, document)

    def has_document(self, run: Any) -> bool:
        """Whether the record is still among a local run's artifacts. Not checked on a server."""
        path = local_path(run.info.artifact_uri)
        return path is None or (path / _DOCUMENT).is_file()

    def document(self, run_id: str) -> str:
        """The canonical JSON stored by `attach`."""
        path = self._artifacts(run_id)
        if path is not None:
            return (path / _DOCUMENT).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            found = self._client.download_artifacts(run_id, _DOCUMENT, folder)
            return Path(found).read_text(encoding="utf-8")

    def _artifacts(self, run_id: str) -> Path | None:
        return local_path(self._client.get_run(run_id).info.artifact_uri)

    def has_model(self, uri: str) -> bool:
        """Whether the files of a logged model, `models:/<id>`, still exist."""
        model = self._client.get_logged_model(uri.rpartition("/")[2])
        path = local_path(model.artifact_location)
        return path is None or path.is_dir()

    def show_views(self, rows: Iterable[str], seeds: bool) -> None:
        """Update the saved views of the experiment's page; `rows`, `seeds`: see `view_tags`.
        Views that a user saved are not changed."""
        there = self._client.get_experiment(self._id).tags
        for key, value in view_tags(rows, seeds).items():
            if there.get(key) != value:
                self._client.set_experiment_tag(self._id, key, value)

    def attach_figure(self, run_id: str, path: Path) -> None:
        """Attach a figure of the report, in the run's folder "figures"."""
        self._client.log_artifact(run_id, str(path), "figures")

    def seal(self, run_id: str, view: RunView, ended: float | None = None) -> None:
        """Set the record's hash, then FINISHED. Done last, so an incomplete run is never taken for
        a complete one."""
        self._client.set_tag(run_id, "record_sha", view.sha)
        self.end(run_id, "FINISHED", ended)

    def end(self, run_id: str, status: str, ended: float | None = None) -> None:
        """Set the state of a run: FINISHED, FAILED, KILLED."""
        at = None if ended is None else round(ended * 1000)
        self._client.set_terminated(run_id, status, at)

    def reopen(self, run_id: str) -> None:
        """Set a run to RUNNING again, for a resumed training."""
        self._client.update_run(run_id, "RUNNING")

    def log_network(
        self, run_id: str, name: str, model: Any, example: Any, tags: Mapping[str, str]
    ) -> str:
        """Log an MLflow model of this run and register it as the next version of `name`: an
        exported graph (no pickle) with a signature, for any batch size. Returns its URI.

        Args:
            model: a torch module in evaluation mode.
            example: float32 numpy input with a batch of at least two (one would become a constant).
        """
        import mlflow.pytorch
        import torch
        from mlflow.models import Model, infer_signature

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_experiment(experiment_id=self._id)
        with torch.no_grad():
            answer = model(torch.from_numpy(example)).numpy()
        logged = Model.log(
            artifact_path=None,
            flavor=mlflow.pytorch,
            name=name,
            run_id=run_id,
            registered_model_name=name,
            pytorch_model=model,
            signature=infer_signature(example, answer),
            input_example=example,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            serialization_format="pt2",
            tags=dict(tags),
        )
        self.describe(run_id, {}, {"model_uri": logged.model_uri})
        return str(logged.model_uri)

    def delete(self, run_id: str) -> None:
        """Move a run to MLflow's bin."""
        self._client.delete_run(run_id)

    def history(self, run_id: str, metric: str) -> list[Point]:
        """All values of a metric, by step."""
        rows = self._client.get_metric_history(run_id, metric)
        points = [Point(metric, float(m.value), int(m.step), m.timestamp / 1000) for m in rows]
        return sorted(points, key=lambda p: p.step)

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name) or self._create_experiment(name)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _create_experiment(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        database = sqlite_file(self.uri)
        place = None if database is None else (database.parent / ARTIFACTS).as_uri()
        try:
            made = self._client.create_experiment(name, place, {"mlflow.experimentKind": _KIND})
            for key, value in view_tags().items():
                self._client.set_experiment_tag(made, key, value)
            self._client.set_experiment_tag(made, "mlflow.note.content", views_guide(made))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process
                raise
        return self._client.get_experiment_by_name(name)


def _make_tables(uri: str) -> None:
    load_libraries().MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
