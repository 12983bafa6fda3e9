"""The summary at the end of a run: one table, warnings, what changed against git."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

from pipeline.files import read_json
from pipeline.study.execution.report_state import folders
from pipeline.study.records.locked import LOCK, outputs

RECORDS = Path("reports/records")
EVENTS = "artifacts/events/"
_COLUMNS = {
    "pruning": "row",
    "method": "method",
    "final": "final %",
    "dense": "dense %",
    "macs_nonzero": "MACs %",
    "params_nonzero": "params %",
}
_WIDEST = 60


def table(path: Path) -> str:
    """The main table in less than 120 columns: scores as delivered and before pruning, remaining
    MACs and parameters."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return f"No pruned networks here, so no rows: other tables are in {path.parent}."
    named = {name.removeprefix("final_"): name for name in rows[0] if name.startswith("final_")}
    score = next((name for name in named if not name.endswith("_std")), "")
    cells = [list(_COLUMNS.values())]
    for row in rows:
        done = row["status"] == "done"
        numbers = (f"final_{score}", f"dense_{score}", "macs_nonzero", "params_nonzero")
        shown = [_number(row.get(name, "")) for name in numbers] if done else ["not run", *"–––"]
        name = row["pruning"]
        short = name if len(name) <= _WIDEST else f"{name[: _WIDEST - 1]}…"
        cells.append([short, row["method"], *shown])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(_aligned(row, widths) for row in cells)


def _aligned(row: list[str], widths: list[int]) -> str:
    """Align a row: two columns of words, then numbers."""
    padded = [
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(padded)


def _number(text: str) -> str:
    return f"{float(text):.2f}" if text else "–"


def warnings(folder: Path) -> list[str]:
    """Prunings that should have removed something and removed nothing."""
    found = []
    for name, record in _recorded(folder).items():
        if record["target"]["rule"] == "none":
            continue
        counts, left = record["counts"], "kept"
        if record["granularity"] != "structured":
            left = "nonzero"
        if counts[f"params_{left}"] == counts["params_dense"]:
            found.append(
                f"{name}: {record['method']} removed 0 of {counts['params_dense']:,} "
                f"parameters{_ADVICE.get(record['target']['rule'], '')}"
            )
    return found


_ADVICE = {"zeros": ": is its penalty too small, or the training too short?"}


def changes(folder: Path) -> str:
    """One sentence: how the records differ from those of the last commit."""
    before, now = _committed(folder), _recorded(folder)
    if not now:
        return "No records of pruned networks here to compare with those in git."
    both = [key for key in now if key in before]
    if not both:
        return "No record of these rows is in git yet: commit reports/ to compare later runs."
    differ = [key for key in both if now[key] != before[key]]
    if not differ:
        return f"All {len(both)} records equal those in git.{_in_the_lock(folder)}"
    moves = {key: _move(before[key], now[key]) for key in differ}
    key = max(differ, key=lambda k: abs(moves[k][1]))
    name, by = moves[key]
    return (
        f"{len(differ)} of {len(both)} rows differ from their records in git, final {name} by up "
        f"to {abs(by):.2f} ({key}); another kind of CPU is enough for that (docs/dvc.md). "
        "`git diff --stat reports` shows more."
    )


def _in_the_lock(folder: Path) -> str:
    """Why dvc.lock differs from git although no record does."""
    paths, altered = set[str](), False
    for place in folders(folder):
        committed = _git(place, "show", f"HEAD:./{LOCK}")
        if committed is None or not (place / LOCK).is_file():
            continue
        text = (place / LOCK).read_text(encoding="utf-8")
        before, now = outputs(committed), outputs(text)
        altered |= text != committed
        paths |= {path for path in before | now if before.get(path) != now.get(path)}
    if not altered or any(not path.startswith(EVENTS) for path in paths):
        return ""
    what = f"{len(paths)} event files, which hold times" if paths else "code that altered no result"
    return f" {LOCK} differs by the hashes of {what}."


def _move(before: Any, now: Any) -> tuple[str, float]:
    """Name and change of the main score."""
    name = min(now["final"], key=lambda n: (n == "loss", n))
    return name, now["final"][name] - before["final"].get(name, now["final"][name])


def _recorded(folder: Path) -> dict[str, Any]:
    """The evaluate records of a study and its parts, by name."""
    found = [p for f in folders(folder) for p in (f / RECORDS / "evaluate").glob("*.json")]
    return {path.stem: read_json(path) for path in sorted(found)}


def _committed(folder: Path) -> dict[str, Any]:
    """Those of HEAD; empty outside a git repository."""
    found = {}
    for place in folders(folder):
        listed = _git(place, "ls-tree", "--name-only", "HEAD", f"{RECORDS / 'evaluate'}/")
        for name in filter(lambda n: n.endswith(".json"), (listed or "").splitlines()):
            text = _git(place, "show", f"HEAD:./{name}")
            if text:
                found[Path(name).stem] = json.loads(text)
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
