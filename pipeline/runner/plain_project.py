"""The trainings of a study on a machine without DVC, e.g. inside an unpacked bundle."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.runner.task import Outcome, Task
from pipeline.study import paths
from pipeline.study.params.load import Params


class PlainProject:
    """One task per training; a training with a record and final weights is up to date. DVC accepts
    the results later (`espalier bundle import`)."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def tasks(self) -> Mapping[str, Task]:
        """All trainings of params.yaml."""
        return {
            f"train@{key}": Task(f"train@{key}", "stages.train", ("--training", key))
            for key in self._params.file.trainings
        }

    def begin(self, name: str) -> Outcome | None:
        """UNCHANGED where the training is finished."""
        key = name.partition("@")[2]
        whole = (paths.training(key) / "final/model.safetensors").exists()
        return Outcome.UNCHANGED if whole and paths.record("train", key).exists() else None

    def done(self, name: str) -> None:
        """Nothing: the record was written last, by the stage itself."""

    def flush(self) -> None:
        """Nothing to write."""
