"""Whether `reports/` is what `report` would write now, without importing torch or MLflow.

`report` runs in every `dvc repro`, because MLflow's database is no DVC dependency. At its end it
leaves a digest of everything it read, of what it wrote and of the database. While all of these are
the same, the next report has nothing to do. In doubt it runs: a server's database cannot be seen
from here, and a folder of images must be compared with its inventory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.files import write_json
from pipeline.study import paths
from pipeline.study.records.locked import records_differ
from pipeline.study.tracking.store import open_store

STATE = Path(".checkpoints/report.json")
_CODE = ("pipeline", "methods", "models", "reports/build", "reports/papers", "stages")
_READ = (paths.PARAMS, paths.RECORDS, paths.CARD, Path("artifacts/events"))
_DELIVERED = Path("artifacts/finetune")
_WRITTEN = (paths.TABLES, Path("reports/plots"))
_LOCAL = Path("reports/local")  # the page with the latencies of this machine
_DATABASE = (Path("mlflow.db"), Path("mlflow.db-wal"), Path("mlartifacts"))
_LIBRARIES = ("matplotlib", "mlflow", "numpy", "pandas", "scipy", "torch")


def inputs() -> str:
    """Digest of everything that a report reads: take it before the report starts."""
    hashed = hashlib.sha256(repr((str(Path.cwd()), sys.version, _versions())).encode())
    code = [paths.CODE / name for name in _CODE]
    for path in files_of(*(folder / name for folder in folders() for name in _READ), *code):
        if "__pycache__" not in path.parts:
            hashed.update(f"\n{path}:".encode())
            hashed.update(hashlib.sha256(path.read_bytes()).digest())
    for path in files_of(_DELIVERED):
        hashed.update(_seen(path).encode())
    return hashed.hexdigest()


def results() -> str:
    """Digest of the tables and figures, and the state of the local database."""
    hashed = hashlib.sha256()
    for path in files_of(*_WRITTEN, _LOCAL):
        hashed.update(f"\n{path}:".encode())
        hashed.update(hashlib.sha256(path.read_bytes()).digest())
    for path in files_of(*_DATABASE):
        hashed.update(_seen(path).encode())
    return hashed.hexdigest()


def is_current() -> bool:
    """Whether a report would read, write and publish exactly what the last complete one did."""
    try:
        said = json.loads(STATE.read_text(encoding="utf-8"))
        card = json.loads(paths.CARD.read_text(encoding="utf-8")) if paths.CARD.is_file() else {}
        return (
            "MLFLOW_TRACKING_URI" not in os.environ
            and "images" not in card.get("files", ())
            and all(path.is_dir() for path in _WRITTEN)
            and not any(map(records_differ, folders()))
            and said == {"inputs": inputs(), "results": results()}
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def save(before: str, study: str) -> None:
    """Save that the report is complete. Not if it filled a server, and not while a run is open: a
    later report has to mark that run KILLED if its process dies.

    Args:
        before: `inputs()` when the report started.
        study: name of the experiment.
    """
    served = "MLFLOW_TRACKING_URI" in os.environ
    if served or open_store(study).runs("attributes.status = 'RUNNING'"):
        STATE.unlink(missing_ok=True)
    else:
        write_json(STATE, {"inputs": before, "results": results()})


def folders(study: Path = Path()) -> list[Path]:
    """The folders of a study, its own and its parts, without loading its params.yaml."""
    text = (study / paths.PARAMS).read_text(encoding="utf-8")
    if re.search(r"^[\"']?parts[\"']?\s*:", text, re.MULTILINE) is None:  # parsing takes long
        return [study]
    from pipeline.study.params.reading import read_values

    parts = read_values(study / paths.PARAMS).get("parts") or ()
    return [study, *(study / name for name in parts)]


def files_of(*places: Path) -> Iterator[Path]:
    """These files, and all files below these folders."""
    for place in places:
        yield from [place] if place.is_file() else sorted(filter(Path.is_file, place.rglob("*")))


def _seen(path: Path) -> str:
    """What tells a changed file without reading it."""
    stat = path.stat()
    return f"\n{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def _versions() -> list[str]:
    return [version_of(name) for name in _LIBRARIES]


def version_of(name: str) -> str:
    """The version of an installed package; "" without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
