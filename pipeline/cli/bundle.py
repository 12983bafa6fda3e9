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

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from pipeline.cli.archive import MANIFEST, below, pack, read_manifest
from pipeline.cli.bundle_import import ask, bring_in
from pipeline.study import paths
from pipeline.study.execution.runtime import log
from pipeline.study.params.load import Params, load_params
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
    manifest = {"study": params.file.study, "ask": {k: ask(params, k) for k in keys}}
    texts = {"params.yaml": _slice(params, keys, weights), "README": _GUIDE.format(first=keys[0])}
    pack(out, manifest, files, texts)


def collect(out: Path) -> tuple[list[str], list[str]]:
    """In an unpacked bundle: pack results and checkpoints. Returns finished and unfinished keys."""
    if not Path(MANIFEST).is_file():
        raise FileNotFoundError(f"{MANIFEST}: not here: collect inside an unpacked bundle")
    manifest, params = read_manifest(Path(MANIFEST).read_bytes(), MANIFEST), load_params()
    files: dict[str, Path] = {}
    finished, unfinished = [], []
    for key in manifest.ask:
        if (found := _finished(key)) is not None:
            finished.append(key)
        elif found := _unfinished(key):
            unfinished.append(key)
        files |= found or {}
    answer = {"study": manifest.study,
              "ask": {k: ask(params, k) for k in [*finished, *unfinished]},
              "finished": tuple(finished), "unfinished": tuple(unfinished)}  # fmt: skip
    pack(out, answer, files, {})
    return finished, unfinished


def accept(keys: Sequence[str]) -> None:
    """Commit these trainings to DVC, so that it runs the stages after them."""
    for key in keys:
        command = [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", f"train@{key}"]
        subprocess.run(command, check=True)


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
@click.argument("archive", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dvc/--no-dvc", default=True, help="Tell DVC that they are done.")
@click.option(
    "--max-gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Refuse more than this, unpacked. Default: 1, or 200 times the archive if that is more.",
)
def _import(archive: Path, dvc: bool, max_gb: float | None) -> None:
    """Verify results and put them where `dvc repro` expects them."""
    most = None if max_gb is None else int(max_gb * 1e9)
    finished, unfinished = bring_in(load_params(), archive, most)
    if dvc:
        accept(finished)
    log.info("finished: %s", ", ".join(finished) or "none")
    log.info("to go on with: %s", ", ".join(unfinished) or "none")
