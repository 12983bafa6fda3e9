"""Check that the inputs of a stage instance did not change while it ran.

A stage reads parameters and code at its start; DVC hashes them after its end. With an edit in
between, dvc.lock would pair a record of the old values with the new ones (treeverse/dvc#11058).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.files import DataError
from pipeline.data.prepared import require_same_images
from pipeline.study import paths
from pipeline.study.execution.code import source_sha256
from pipeline.study.execution.runtime import LOOP_CODE
from pipeline.study.params.compare import first_difference
from pipeline.study.params.load import Params, ParamsError, load_params

MEASURING = ("pipeline/measure",)
ALWAYS = ("pipeline/files.py", "pipeline/data")


class ChangedInputError(RuntimeError):
    """An input changed while a stage ran; nothing may be recorded."""


class OtherCodeError(RuntimeError):
    """Python imported other code than that which DVC hashes for this study."""


class Inputs:
    """Everything that determines the result of a stage instance, at the time of construction.

    Args:
        params: the params that the stage read at its start.
        stage: name of the stage in dvc.yaml.
        key: the instance; "" for a stage without instances.

    Raises:
        OtherCodeError: this process runs the code of another checkout.
    """

    def __init__(self, params: Params, stage: str, key: str = "") -> None:
        self._stage, self._key, self._path = stage, key, params.path
        self._settings = _settings(params, stage, key)
        self._code = _code(params, stage, key)
        _require_own_code(Path(params.file.root), self._code)
        self._card = _content(paths.CARD)

    def require_unchanged(self) -> None:
        """Call this before anything is recorded.

        Raises:
            ChangedInputError: params.yaml, the code, the data card or a folder of images changed
                since construction; comments and docstrings do not count.
        """
        try:
            params = load_params(self._path)
            now = _settings(params, self._stage, self._key)
        except ParamsError as error:
            self._refuse(f"{error}: changed")
        key, before, after = first_difference(self._settings, now)
        if key:
            self._refuse(f"{self._path}: {key}: changed from {before} to {after}")
        code = _code(params, self._stage, self._key)
        for path in sorted({*self._code, *code}):
            if not _same_code(self._code.get(path, b""), code.get(path, b"")):
                self._refuse(f"{path}: changed")
        if self._stage != "prepare-data" and _content(paths.CARD) != self._card:
            self._refuse(f"{paths.CARD}: changed")
        try:
            require_same_images(paths.PREPARED)
        except DataError as error:  # DVC does not track them
            self._refuse(f"{error}. They changed")

    def _refuse(self, what: str) -> None:
        instance = f"{self._stage}@{self._key}" if self._key else self._stage
        folder = paths.checkpoints(self._stage, self._key)
        kept = f"; its checkpoint is kept in {folder}" if self._key and folder.is_dir() else ""
        raise ChangedInputError(
            f"{what} while {instance} ran, so its result was not recorded{kept}. Run `dvc repro` "
            "for the new inputs, or undo the edit first to go on with the old ones"
        )


def _require_own_code(root: Path, code: Mapping[Path, bytes]) -> None:
    """Checkouts that share an environment import the code that is installed in it."""
    if (root / "pipeline").resolve() == paths.CODE / "pipeline":
        return
    for path, content in code.items():
        running = paths.CODE / path.relative_to(root)
        if not _same_code(content, _content(running)):
            home = (root / "pipeline").resolve().parent
            raise OtherCodeError(
                f"{path}: the code of this study, but Python runs {running}, which is other code: "
                f"use the environment of the first, or set PYTHONPATH={home}"
            )


def _settings(params: Params, stage: str, key: str) -> dict[str, Any]:
    """The values of params.yaml that a stage reads, by key path."""
    file = params.file
    if stage == "train":
        training = params.training(key)
        return {
            f"trainings.{key}": training.model_dump(mode="json", exclude={"train", "settings"}),
            "train": params.recipe(key).model_dump(mode="json"),
            f"methods.{training.method}": params.method_config(key).model_dump(mode="json"),
        }
    if stage in ("prune", "finetune", "evaluate"):
        pruning = params.pruning(key).model_dump(mode="json")
        more = {
            "prune": {},
            "finetune": {
                "finetune": params.retraining(key).model_dump(mode="json"),
                "recipe": params.retraining_recipe(key).model_dump(mode="json"),
            },
            "evaluate": {"evaluate": file.evaluate.model_dump(mode="json")},
        }
        return {f"prunings.{key}": pruning, **more[stage]}
    if stage == "sweep":
        sweep = file.sweep.model_dump(mode="json", exclude={"trainings"})
        return {"sweep": sweep, "evaluate.batch_size": file.evaluate.batch_size}
    if stage == "connect":
        pair = params.pair(key).model_dump(mode="json")
        more = file.connect.model_dump(mode="json", exclude={"pairs"})
        batch_size = file.evaluate.batch_size
        return {f"connect.pairs.{key}": pair, "connect": more, "evaluate.batch_size": batch_size}
    if stage == "prepare-data":
        return {"data": file.data.model_dump(mode="json")}
    return file.model_dump(mode="json", exclude={"compute"})


def _code(params: Params, stage: str, key: str) -> dict[Path, bytes]:
    """The code that a stage runs, by file: the code dependencies of its entry in dvc.yaml."""
    root = Path(params.file.root)
    places = [f"stages/{stage.replace('-', '_')}.py", *ALWAYS]
    if stage not in ("prepare-data", "report"):
        places += LOOP_CODE if stage == "train" else (*LOOP_CODE, *MEASURING)
    if stage == "train":
        training = params.training(key)
        family = f"models/{training.model.family}.py"
        places += [family, "methods/_oto", f"methods/{training.method}"]
    found = [root / place for place in dict.fromkeys(places)]
    files = [f for p in found for f in ([p] if p.is_file() else p.rglob("*.py"))]
    return {file: file.read_bytes() for file in files}


def _same_code(one: bytes, other: bytes) -> bool:
    return one == other or source_sha256(one) == source_sha256(other)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
