"""Whether params.yaml is known to be valid, without importing torch.

`check` runs in every `dvc repro`. After a successful one it leaves a digest of what it read: while
that is the same, validating again has the same result. Files that settings name (weights, images)
are not in it; every stage validates the params again before it starts.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from pipeline.files import write_text
from pipeline.study import paths
from pipeline.study.execution.report_state import files_of, folders, version_of

STATE = Path(".checkpoints/params.sha256")
_CODE = ("pipeline", "methods", "models")
SAYS = "params.yaml is valid"
_LIBRARIES = ("pydantic", "ruamel.yaml", "torch", "torchvision")


def inputs() -> str:
    """Digest of what a validation reads: take it before the validation. "" if params.yaml cannot be
    read, which the validation explains."""
    try:
        return _digest()
    except (OSError, ValueError):
        return ""


def _digest() -> str:
    versions = [version_of(name) for name in _LIBRARIES]
    hashed = hashlib.sha256(repr((str(Path.cwd()), sys.version, versions)).encode())
    read = [folder / name for folder in folders() for name in (paths.PARAMS, "dvc.yaml")]
    for path in files_of(*read, *(paths.CODE / name for name in _CODE)):
        if "__pycache__" not in path.parts:
            hashed.update(f"\n{path}:".encode())
            hashed.update(hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def is_known() -> bool:
    """Whether exactly these params were valid for exactly this code."""
    return STATE.is_file() and STATE.read_bytes() == inputs().encode()


def confirm() -> None:
    """Write the output of `check`, on which `prepare-data` depends: it is always the same."""
    if not (paths.CHECKED.is_file() and paths.CHECKED.read_bytes() == f"{SAYS}\n".encode()):
        paths.CHECKED.parent.mkdir(exist_ok=True)
        write_text(paths.CHECKED, f"{SAYS}\n")


def save(before: str) -> None:
    """Save that the params are valid.

    Args:
        before: `inputs()` when the validation started.
    """
    STATE.parent.mkdir(exist_ok=True)
    write_text(STATE, before)
