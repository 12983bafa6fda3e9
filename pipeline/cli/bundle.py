"""Move trainings to a machine without DVC, MLflow, git or network, and their results back.

    espalier bundle export <training>... --out go.tar.gz     here
    tar xzf go.tar.gz && python -m stages.train --training <training>        there
    espalier bundle collect --out back.tar.gz                there
    espalier bundle import back.tar.gz                       here, then `dvc repro`

A bundle contains the code, the prepared data, the params of its trainings and the checkpoints of
interrupted ones. It also has a digest of params, data and code. Results are accepted only if the
digest still matches here.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from pipeline.cli.archive import MANIFEST, below, pack, unpack
from pipeline.files import DamagedFileError, file_sha256, load_tree, read_json, tensors_sha256
from pipeline.study import paths
from pipeline.study.execution.runtime import code_digest, log, loop_code, method_code
from pipeline.study.params.load import Params, load_params
from pipeline.study.records.record import TrainRecord, canonical, read_record
from pipeline.training.weights import located

CODE = ("pipeline", "stages", "methods", "models")
_BLOCKS = ("study", "data", "train", "finetune", "evaluate", "compute")
_GUIDE = """\
One training each (ESPALIER_MLFLOW=off: there is no server to look for):

    ESPALIER_MLFLOW=off python -m stages.train --training {first}

or all of them, longest first, as far as the time goes, resumable:

    ESPALIER_MLFLOW=off python -m pipeline.cli run --budget-minutes 25

then pack what came of it, finished or not:

    espalier bundle collect --out back.tar.gz

Needs Python 3.11 with torch, pydantic, click, ruamel.yaml, safetensors and tqdm.
"""


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


def export(params: Params, keys: Sequence[str], out: Path) -> None:
    """Pack trainings with everything they need."""
    root = Path(params.file.root)
    files: dict[str, Path] = {}
    for room in CODE:
        files |= below(root / room, root)
    files |= below(paths.PREPARED, Path())
    weights = {}
    for key in keys:
        files |= _unfinished(key)
        asked = params.training(key).weights
        if asked is not None:
            weights[key] = f"weights/{key}{Path(asked.path).suffix}"
            files[weights[key]] = located(asked.path)
    manifest = {"format": 1, "study": params.file.study, "ask": {k: ask(params, k) for k in keys}}
    texts = {"params.yaml": _slice(params, keys, weights), "README": _GUIDE.format(first=keys[0])}
    pack(out, manifest, files, texts)


def collect(out: Path) -> tuple[list[str], list[str]]:
    """In an unpacked bundle: pack results and checkpoints. Returns finished and unfinished keys."""
    manifest, params = read_json(Path(MANIFEST)), load_params()
    files: dict[str, Path] = {}
    finished, unfinished = [], []
    for key in manifest["ask"]:
        if (found := _finished(key)) is not None:
            finished.append(key)
        elif found := _unfinished(key):
            unfinished.append(key)
        files |= found or {}
    answer = {"format": 1, "study": manifest["study"],
              "ask": {k: ask(params, k) for k in [*finished, *unfinished]},
              "finished": finished, "unfinished": unfinished}  # fmt: skip
    pack(out, answer, files, {})
    return finished, unfinished


def bring_in(params: Params, archive: Path) -> tuple[list[str], list[str]]:
    """Verify everything, then place it. Returns finished and unfinished keys.

    Raises:
        DamagedFileError: the archive or something in it is damaged or was edited.
        ValueError: it was made with other params, data or code than the present ones.
    """
    beginnings = [f"{folder}/" for folder in ("artifacts", "reports/records/train", ".checkpoints")]
    Path(".checkpoints").mkdir(exist_ok=True)  # on the same file system, so that moving is renaming
    with tempfile.TemporaryDirectory(prefix="import-", dir=".checkpoints") as scratch:
        came = Path(scratch)
        manifest = unpack(archive, came, beginnings)
        for key in [*manifest["finished"], *manifest["unfinished"]]:
            params.training(key)  # refuses an unknown name
            if manifest["ask"].get(key) != ask(params, key):
                raise ValueError(
                    f"{archive}: {key}: its params, data or code are not the ones here: export it "
                    "again (or check out the commit it was exported from)"
                )
        for key in manifest["finished"]:
            _check(archive, came, key)
        for key in manifest["finished"]:
            _place_result(came, key)
        for key in manifest["unfinished"]:
            _place_checkpoint(came, key)
    return list(manifest["finished"]), list(manifest["unfinished"])


def accept(keys: Sequence[str]) -> None:
    """Commit these trainings to DVC, so that it runs the stages after them."""
    for key in keys:
        command = [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", f"train@{key}"]
        subprocess.run(command, check=True)


def _check(archive: Path, came: Path, key: str) -> None:
    """Check that the record is intact and belongs to this training and these weights."""
    record = read_record(TrainRecord, came / paths.record("train", key))
    spec = read_json(came / paths.training(key) / "spec.json")
    state = load_tree(came / paths.training(key) / "final/model.safetensors")
    if record.training != key or spec["training"] != key or spec["seed"] != record.seed:
        raise DamagedFileError(f"{archive}: {key}: its record is of another training")
    if tensors_sha256(state) != record.weights_sha:
        raise DamagedFileError(f"{archive}: {key}: its weights are not those of its record")


def _finished(key: str) -> dict[str, Path] | None:
    record, folder = paths.record("train", key), paths.training(key)
    if not record.exists() or not (folder / "final/model.safetensors").exists():
        return None
    events = paths.events("train", key)
    known = {events.as_posix(): events} if events.exists() else {}
    return below(folder, Path()) | known | {record.as_posix(): record}


def _unfinished(key: str) -> dict[str, Path]:
    folder = paths.checkpoints("train", key)
    if not (folder / "last.safetensors").exists():
        return {}
    events = folder.with_suffix(".events.jsonl")
    known = {events.as_posix(): events} if events.exists() else {}
    return below(folder, Path()) | known


def _place_result(came: Path, key: str) -> None:
    """Place the record last: a training without a record is not finished."""
    shutil.rmtree(paths.training(key), ignore_errors=True)
    moved = (paths.training(key), paths.events("train", key), paths.record("train", key))
    for place in moved:
        if (came / place).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            (came / place).replace(place)


def _place_checkpoint(came: Path, key: str) -> None:
    """Place the checkpoint, unless the present one is further."""
    folder = paths.checkpoints("train", key)
    if _steps(folder) >= _steps(came / folder):
        log.info("%s: the checkpoint here is as far; kept", key)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    (came / folder).replace(folder)
    events = folder.with_suffix(".events.jsonl")
    if (came / events).exists():
        (came / events).replace(events)


def _steps(folder: Path) -> int:
    last = folder / "last.safetensors"
    return int(load_tree(last)["counters"]["step"]) if last.exists() else -1


def _slice(params: Params, keys: Sequence[str], weights: dict[str, str]) -> str:
    """params.yaml with only these trainings; weights are paths inside the bundle."""
    raw = YAML(typ="safe", pure=True).load(params.path.read_text(encoding="utf-8"))
    part: dict[str, Any] = {name: raw[name] for name in _BLOCKS if name in raw} | {"root": "."}
    methods = {params.training(key).method for key in keys}
    part["methods"] = {n: c for n, c in raw["methods"].items() if n in methods}
    part["trainings"] = {key: raw["trainings"][key] for key in keys}
    for key, place in weights.items():
        part["trainings"][key]["weights"]["path"] = place
    part["prunings"] = {}
    with tempfile.TemporaryFile("w+") as file:
        YAML().dump(part, file)
        file.seek(0)
        return file.read()


@click.group(help=__doc__)
def bundle() -> None:
    import logging

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")


@bundle.command("export")
@click.argument("trainings", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def _export(trainings: tuple[str, ...], out: Path) -> None:
    """Pack trainings of params.yaml for another machine."""
    export(load_params(), trainings, out)
    log.info("%s: %.1f MB", out, out.stat().st_size / 1e6)


@bundle.command("collect")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def _collect(out: Path) -> None:
    """Inside an unpacked bundle: pack results and checkpoints."""
    finished, unfinished = collect(out)
    log.info("%s: %d finished, %d to go on with", out, len(finished), len(unfinished))


@bundle.command("import")
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--dvc/--no-dvc", default=True, help="tell DVC that they are done")
def _import(archive: Path, dvc: bool) -> None:
    """Verify results and put them where `dvc repro` expects them."""
    finished, unfinished = bring_in(load_params(), archive)
    if dvc:
        accept(finished)
    log.info("finished: %s", ", ".join(finished) or "none")
    log.info("to go on with: %s", ", ".join(unfinished) or "none")
