"""The tracking URI, and MLflow's SQLite file: create it atomically, repair it, relocate it.

MLflow creates a new file in about fifty migrations. A process that ends in between leaves a file
that no later process can open. A file that was copied or moved still has the absolute path of its
former folder in every run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"
_PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
_log = logging.getLogger("espalier.tracking")


def root() -> Path:
    """The folder of the study: from DVC's environment or, without DVC, the working directory."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def tracking_uri() -> str:
    """The URI of the tracking store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(root() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The SQLite URI of a file. A URI cannot contain `?`. If the folder's name does, the URI is
    relative to the working directory, which is this folder in every stage."""
    path = path.absolute()
    return f"sqlite:///{os.path.relpath(path) if set('?#%') & set(str(path)) else path}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI; None for other URIs and for databases in memory."""
    scheme, _, path = uri.partition(":///")
    return Path(path).absolute() if scheme.startswith("sqlite") and path else None


def local_path(uri: str) -> Path | None:
    """The path of a file: URI; None for other URIs."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def make_ready(database: Path, fill: Callable[[str], None]) -> None:
    """Create, replace or relocate the file. Only one process may call this at a time.

    A damaged file is renamed and a new one is created, which is filled again from the records.

    Args:
        fill: creates MLflow's tables in the file of a URI.
    """
    reason = damage(database)
    if reason:
        aside = _free(database.with_name(f"{database.name}.damaged"))
        database.replace(aside)
        _log.warning(
            "%s is damaged (%s): it is now %s, and the report fills a new one from the records",
            database, reason, aside.name,
        )  # fmt: skip
    if not database.exists():
        new = database.with_name(f".{database.name}.new")
        new.unlink(missing_ok=True)
        fill(sqlite_uri(new))
        new.replace(database)
    elif database.stat().st_size:
        relocate(database)


def damage(database: Path) -> str:
    """A description of the damage; "" if the file is intact, empty or absent."""
    if not database.exists() or not database.stat().st_size:
        return ""
    try:
        with contextlib.closing(_connect(database)) as db:
            (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
            half = db.execute("SELECT name FROM sqlite_master WHERE name GLOB '_alembic_tmp_*'")
            if said == "ok" and (table := half.fetchone()):
                return f"its set-up was interrupted at {table[0].removeprefix('_alembic_tmp_')}"
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return ""  # another process is writing to it
        return str(error)
    return "" if said == "ok" else str(said).splitlines()[0][:120]


def relocate(database: Path) -> None:
    """Make every run refer to the artifacts beside this file, wherever the file was created."""
    here = (database.parent / ARTIFACTS).as_uri()
    with contextlib.closing(_connect(database)) as db, db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if "experiments" not in tables:
            return
        asked = db.execute(
            "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?",
            (f"file:%/{ARTIFACTS}",),
        )
        for (there,) in [row for row in asked.fetchall() if row[0] != here]:
            for table in _PLACES.keys() & tables:
                for column in _PLACES[table]:
                    db.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(there) + 1, there, len(there) + 1, f"{there}/"),
                    )


def metric_counts(database: Path) -> dict[tuple[str, str], int]:
    """Number of steps by (run id, metric)."""
    with contextlib.closing(_connect(database)) as db:
        rows = db.execute("SELECT run_uuid, key, COUNT(DISTINCT step) FROM metrics GROUP BY 1, 2")
        return {(run, key): count for run, key, count in rows}


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=20)


def _free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
