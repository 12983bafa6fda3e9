"""Decide whether a training may resume from a checkpoint.

Everything that determines a result is stored beside its checkpoint, by name. If an input changes,
the checkpoint is renamed, not deleted, and the log says what changed. Restore the inputs, and the
next run resumes from it. A change of code or device that you know to be harmless can be accepted:

    ESPALIER_RESUME=.checkpoints/train/a.set-aside-1 dvc repro train@a

A changed setting cannot be accepted: the record would state a value that did not hold for part of
the training.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import DamagedFileError, read_json, write_json

INPUTS, LAST, VARIABLE = "inputs.json", "last.safetensors", "ESPALIER_RESUME"
CODE, DEVICE = "code", "device"  # the inputs that no record holds
_SHOWN = 8  # changes listed in a message
log = logging.getLogger("espalier")


def claim(folder: Path, inputs: Any) -> None:
    """Make `folder` hold a checkpoint with these inputs, or no checkpoint.

    Args:
        inputs: a tree of plain values, by name; code digests under "code".

    Raises:
        ValueError: ESPALIER_RESUME names a checkpoint of this training that cannot be resumed.
    """
    wanted = _flat(inputs)
    chosen = _chosen(folder)
    if chosen is not None and (chosen / LAST).is_file():
        _accept(chosen, folder, wanted)
    elif _read(folder) != wanted:
        if chosen is not None:
            known = ", ".join(map(str, _aside(folder))) or "none"
            raise ValueError(f"{VARIABLE}: no checkpoint in {chosen} (set aside: {known})")
        _set_aside(folder, wanted)
        for kept in _aside(folder):
            if (kept / LAST).is_file() and _read(kept) == wanted:
                kept.rename(folder)
                log.warning("%s: resuming what was set aside as %s", folder, kept.name)
                break


def write_inputs(folder: Path, inputs: Any) -> None:
    """Store the inputs beside the checkpoint, before it is written."""
    write_json(folder / INPUTS, _flat(inputs))


def sweep(folder: Path) -> None:
    """Remove temporary files of a killed write. No other process may be writing there."""
    for left in folder.rglob(".*.tmp"):
        left.unlink(missing_ok=True)


def remind(folder: Path) -> None:
    """After a training has finished: log which checkpoints are set aside."""
    if kept := list(_aside(folder)):
        log.info("set aside earlier, delete if not needed: %s", ", ".join(map(str, kept)))


def _flat(node: Any, name: str = "") -> dict[str, str]:
    """Every leaf as JSON, by dotted name."""
    if not isinstance(node, Mapping):
        return {name: json.dumps(node, sort_keys=True, default=str)}
    parts = [_flat(value, f"{name}.{key}" if name else str(key)) for key, value in node.items()]
    return {key: value for part in parts for key, value in part.items()}


def _read(folder: Path) -> dict[str, str] | None:
    """The inputs of the checkpoint in `folder`; None if unknown."""
    try:
        found = read_json(folder / INPUTS)
    except (DamagedFileError, OSError):
        return None
    return found if isinstance(found, dict) else None


def _aside(folder: Path) -> Iterator[Path]:
    numbered = folder.parent.glob(f"{folder.name}.set-aside-*")
    yield from sorted(numbered, key=lambda path: (len(path.name), path.name))


def _chosen(folder: Path) -> Path | None:
    """The checkpoint that ESPALIER_RESUME names, if it belongs to this training."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    path, own = Path(named).resolve(), folder.resolve()
    ours = path.parent == own.parent and path.name.startswith(f"{own.name}.set-aside-")
    return folder.parent / path.name if ours or path == own else None


def _accept(chosen: Path, folder: Path, wanted: Mapping[str, str]) -> None:
    before = _read(chosen)
    known = before or {}
    changed = sorted(k for k in known.keys() | wanted if known.get(k) != wanted.get(k))
    stated = [k for k in changed if k != DEVICE and not k.startswith(f"{CODE}.")]
    if before is not None and stated:
        raise ValueError(
            f"{VARIABLE}: {chosen} was trained with other settings, which its record would not "
            f"state: {_words(before, wanted, stated)}; put them back in params.yaml"
        )
    if chosen != folder:
        _set_aside(folder, wanted)
        chosen.rename(folder)
    what = "unknown inputs" if before is None else _words(before, wanted, changed)
    log.warning("%s: resuming from %s as asked, in spite of %s", folder, chosen, what)


def _set_aside(folder: Path, wanted: Mapping[str, str]) -> None:
    """Rename a checkpoint with other inputs; remove a folder without one."""
    if not (folder / LAST).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        return
    taken = {path.name for path in _aside(folder)}
    names = (f"{folder.name}.set-aside-{n}" for n in range(1, len(taken) + 2))
    before = _read(folder)
    kept = folder.rename(folder.parent / next(name for name in names if name not in taken))
    if before is None:
        log.warning("%s: %s is missing or damaged: set aside as %s", folder, INPUTS, kept)
    elif before != wanted:
        changed = sorted(k for k in before.keys() | wanted if before.get(k) != wanted.get(k))
        words = _words(before, wanted, changed)
        log.warning("%s: these inputs changed since its checkpoint: %s", folder, words)
    log.warning(
        "the checkpoint is kept in %s. To go on with it, put the inputs back and run again; to "
        "accept a harmless change of code, set %s=%s",
        kept, VARIABLE, kept,
    )  # fmt: skip


def _words(before: Mapping[str, str], wanted: Mapping[str, str], names: list[str]) -> str:
    """At most `_SHOWN` changes; settings with old and new value."""
    first = sorted(names, key=lambda name: name.startswith(f"{CODE}."))[:_SHOWN]
    told = [
        name.removeprefix(f"{CODE}.")
        if name.startswith(f"{CODE}.")
        else f"{name} ({before.get(name, 'none')} -> {wanted.get(name, 'none')})"
        for name in first
    ]
    return ", ".join(told) + f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN)
