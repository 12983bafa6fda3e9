"""Verify what came back in a bundle, all of it, then put it in its place."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.archive import MANIFEST, Manifest, unpack
from pipeline.files import DamagedFileError, file_sha256, load_tree, read_json, tensors_sha256
from pipeline.messages import shortened, suggestion
from pipeline.study import paths
from pipeline.study.execution.runtime import code_digest, log, loop_code, method_code
from pipeline.study.params.load import Params
from pipeline.study.records.agreement import training_difference
from pipeline.study.records.artifacts import TrainArtifact
from pipeline.study.records.record import TrainRecord, canonical, read_record
from pipeline.study.tracking.events import read_events
from pipeline.training.loop.checkpoint import FINISHED, LINEAGE, Lineage

LAST = "last.safetensors"
# What an edited file may raise where it is read; each error gets the names of bundle and file.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError)


def ask(params: Params, key: str) -> str:
    """Hash of everything that determines a training: params, data, code."""
    training, root = params.training(key), Path(params.file.root)
    weights = training.weights and training.weights.sha256
    what = {
        "training": training.model_dump(mode="json", exclude={"weights"}) | {"weights": weights},
        "recipe": params.recipe(key).model_dump(mode="json"),
        "method": params.method_config(key).model_dump(mode="json"),
        "data": file_sha256(paths.CARD),
        "loop": loop_code(root),
        "code": method_code(root, training.method)
        | code_digest(root, f"models/{training.model.family}.py"),
    }
    return hashlib.sha256(canonical(what).encode()).hexdigest()


def bring_in(
    params: Params, archive: Path, most_bytes: int | None = None
) -> tuple[list[str], list[str]]:
    """Verify everything, then place it. Returns finished and unfinished keys.

    Args:
        most_bytes: see `unpack`.

    Raises:
        DamagedFileError: the archive or something in it is damaged or was edited; names both.
        ValueError: it was made with other params, data or code than the present ones.
    """
    Path(".checkpoints").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=".checkpoints") as scratch:
        came = Path(scratch)
        manifest = unpack(archive, came, lambda m: _accept(params, archive, m), most_bytes)
        finished, unfinished = list(manifest.finished or ()), list(manifest.unfinished or ())
        for name in manifest.files:
            with _named(archive, came, name):
                _check_file(came / name)
        for key in finished:
            _check_result(params, archive, came, key)
        for key in unfinished:
            _check_checkpoint(archive, came, key)
        further = [key for key in unfinished if _is_further(came, key)]
        for key in finished:
            _place_result(came, key)
        for key in further:
            _place_checkpoint(came, key)
    return finished, unfinished


def _accept(params: Params, archive: Path, manifest: Manifest) -> None:
    """Refuse a manifest that is not an answer to what would be asked now."""
    where = f"{archive}: {MANIFEST}"
    if manifest.finished is None or manifest.unfinished is None:
        raise DamagedFileError(
            f"{where}: no results: import what `bundle collect` packed, not what was exported"
        )
    keys = [*manifest.finished, *manifest.unfinished]
    for key in keys:
        if key not in params.file.trainings:
            known = suggestion(key, params.file.trainings)
            raise DamagedFileError(f"{where}: {shortened(key)!r} is no training here; {known}")
        if keys.count(key) > 1:
            raise DamagedFileError(f"{where}: {key}: listed twice")
        if manifest.ask.get(key) != ask(params, key):
            raise ValueError(
                f"{archive}: {key}: its params, data or code are not the ones here: export it "
                "again (or check out the commit it was exported from)"
            )
    if more := sorted(manifest.ask.keys() - set(keys)):
        raise DamagedFileError(f"{where}: ask: {shortened(more[0])!r} came back with no result")
    _accept_names(archive, manifest, manifest.finished, manifest.unfinished)


def _accept_names(
    archive: Path, manifest: Manifest, finished: Sequence[str], unfinished: Sequence[str]
) -> None:
    """Refuse files that these trainings do not leave, and a training without all of its files."""
    places = [*map(_of_result, finished), *map(_of_checkpoint, unfinished)]
    allowed = re.compile("|".join(places) or "(?!)")
    for name in manifest.files:
        if not allowed.fullmatch(name):
            raise DamagedFileError(f"{archive}: {shortened(name, 200)}: does not belong there")
    needed = [name for key in finished for name in _needed(key)]
    needed += [(paths.checkpoints("train", key) / LAST).as_posix() for key in unfinished]
    for name in needed:
        if name not in manifest.files:
            raise DamagedFileError(f"{archive}: {name}: missing")


def _of_result(key: str) -> str:
    """Pattern of the files that a finished training leaves."""
    folder = re.escape(paths.training(key).as_posix())
    files = (paths.events("train", key), paths.record("train", key))
    exact = "|".join(re.escape(path.as_posix()) for path in files)
    return rf"{folder}/(?:[^/]+\.json|[^/]+/(?:model|saliency)\.safetensors)|{exact}"


def _of_checkpoint(key: str) -> str:
    """Pattern of the files of an interrupted training."""
    folder = paths.checkpoints("train", key)
    inside, events = re.escape(folder.as_posix()), folder.with_suffix(".events.jsonl").as_posix()
    known = r"[^/]+\.json|[^/]+\.safetensors|(?:snapshots|epochs)/[^/]+\.safetensors"
    return rf"{inside}/(?:{known})|{re.escape(events)}"


def _needed(key: str) -> list[str]:
    folder = paths.training(key)
    places = (folder / "spec.json", _final(key), paths.record("train", key))
    return [place.as_posix() for place in places]


def _final(key: str) -> Path:
    return paths.training(key) / "final/model.safetensors"


@contextlib.contextmanager
def _named(archive: Path, came: Path, name: str) -> Iterator[None]:
    """Errors name the bundle and the file in it, not the temporary folder."""
    try:
        yield
    except _UNREADABLE as error:
        reason = str(error).replace(f"{came / name}: ", "").replace(f"{came}/", "")
        raise DamagedFileError(f"{archive}: {name}: {reason or type(error).__name__}") from error


def _check_file(path: Path) -> None:
    """Read a file as its later reader does."""
    if path.suffix == ".safetensors":
        if not isinstance(load_tree(path), dict):
            raise DamagedFileError(f"{path}: not a mapping")
    elif path.suffix == ".jsonl":
        read_events(path)
    elif path.name in (LINEAGE, FINISHED):
        Lineage(**read_json(path))
    else:
        read_json(path)


def _check_result(params: Params, archive: Path, came: Path, key: str) -> None:
    """Check that the record is intact and belongs to this training and these weights."""
    record_name = paths.record("train", key).as_posix()
    with _named(archive, came, record_name):
        record = read_record(TrainRecord, came / record_name)
        where, was, wanted = training_difference(params, key, record)
        if where:
            raise DamagedFileError(f"{where}: {was} in the record, {wanted} in {params.path}")
    spec_name = (paths.training(key) / "spec.json").as_posix()
    with _named(archive, came, spec_name):
        _check_spec(read_json(came / spec_name), record)
    for name in _states(came, key):
        with _named(archive, came, name):
            TrainArtifact(came / paths.training(key)).weights(Path(name).parent.name)
    if tensors_sha256(load_tree(came / _final(key))) != record.weights_sha:
        raise DamagedFileError(f"{archive}: {_final(key)}: not the weights that the record cites")


def _states(came: Path, key: str) -> list[str]:
    found = (came / paths.training(key)).glob("*/model.safetensors")
    return sorted(path.relative_to(came).as_posix() for path in found)


def _check_spec(spec: Any, record: TrainRecord) -> None:
    network = spec["network"]
    model = f"{network['family']}/{network['name']}"
    found = (spec["training"], spec["method"], spec["seed"], model, network["args"])
    told = (record.training, record.method, record.seed, record.model, record.model_args)
    if found != told:
        raise DamagedFileError(f"of another training than its record: {found}, not {told}")


def _check_checkpoint(archive: Path, came: Path, key: str) -> None:
    folder = paths.checkpoints("train", key)
    name = (folder / LAST).as_posix()
    with _named(archive, came, name):
        if not _steps(came / folder) >= 0:
            raise DamagedFileError("counters: step: negative")
        for snapshot in load_tree(came / name).get("snapshots", ()):
            if not (came / folder / f"snapshots/{snapshot}.safetensors").is_file():
                raise DamagedFileError(f"its snapshot {shortened(snapshot)!r} is missing")


def _place_result(came: Path, key: str) -> None:
    """Place the record last: a training without a record is not finished."""
    for place in (paths.training(key), paths.events("train", key), paths.record("train", key)):
        if (came / place).exists():
            _place(came / place, place)


def _place_checkpoint(came: Path, key: str) -> None:
    folder = paths.checkpoints("train", key)
    for place in (folder, folder.with_suffix(".events.jsonl")):
        if (came / place).exists():
            _place(came / place, place)


def _is_further(came: Path, key: str) -> bool:
    """Whether the checkpoint that came back has more steps than the one here."""
    folder = paths.checkpoints("train", key)
    if _steps(folder) < _steps(came / folder):
        return True
    log.info("%s: the checkpoint here is as far; kept", key)
    return False


def _place(source: Path, place: Path) -> None:
    """Replace a file or folder by another, which may be on another file system. What is there
    stays until the new one is beside it."""
    beside = place.with_name(f".{place.name}.import.tmp")
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove(beside)
    try:
        shutil.move(source, beside)
        _remove(place)
        beside.replace(place)
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _steps(folder: Path) -> int:
    last = folder / LAST
    if not last.exists():
        return -1
    step = load_tree(last)["counters"]["step"]
    if not isinstance(step, int):
        raise DamagedFileError(f"{last}: counters: step: {shortened(repr(step))} is no number")
    return step
