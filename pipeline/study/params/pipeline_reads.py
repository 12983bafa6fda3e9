"""Check params.yaml against the dvc.yaml beside it: it has every key that dvc.yaml reads, even if
the schema has a default, and both mean the same code.

DVC itself would report a missing parameter only after the trainings. The keys that a study needs
are read from dvc.yaml; a study without dvc.yaml (a bundle) needs none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.study.params.errors import ParamsError
from pipeline.study.params.schema import File
from pipeline.study.params.wording import short

PIPELINE = "dvc.yaml"
_TEMPLATE = re.compile(r"\$\{\s*([\w-]+(?:\.[\w-]+)*)\s*\}")
_MISSING = object()


def check_pipeline_reads(path: Path, raw: Mapping[str, Any]) -> None:
    """
    Raises:
        ParamsError: the dvc.yaml beside `path` reads a key that is missing, or takes the code from
            another folder than `root`.
    """
    pipeline = path.with_name(PIPELINE)
    if not pipeline.is_file():
        return
    content = _parsed(pipeline.read_text(encoding="utf-8"))
    defaults = _defaults(content)
    known = defaults | dict(raw)
    _check_root(path, defaults.get("code"), raw.get("root"))
    for stage, entry in content.get("stages", {}).items():
        body = entry.get("do", entry)
        for key in _TEMPLATE.findall(str(entry.get("foreach", ""))):
            if not _wanted(path, stage, key, known):
                break  # the stage has no instance, so it reads nothing
        else:
            for key in _read_by(body):
                _wanted(path, stage, key, raw if key in body.get("params", ()) else known)


def _check_root(path: Path, code: str | None, root: str | None) -> None:
    """`root` decides which code a stage digests and `code` which DVC hashes."""
    if code is None or (root or File.model_fields["root"].default) == code:
        return
    told = "missing" if root is None else f"{short(root)} is not where the code is"
    raise ParamsError(f"{path}: root: {told}; {PIPELINE} takes it from {code!r}: `root: {code}`")


@cache
def _parsed(text: str) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return {}  # DVC reports errors in its own file
    return content if isinstance(content, dict) else {}


def _defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for block in content.get("vars", ()):
        found |= block if isinstance(block, dict) else {}
    return found


def _read_by(body: Mapping[str, Any]) -> Iterator[str]:
    """Keys of params.yaml that every instance of a stage reads."""
    for key in body.get("params", ()):
        if isinstance(key, str) and "${" not in key:
            yield key
    for key in _TEMPLATE.findall(str(body)):
        if key.partition(".")[0] not in ("item", "key"):
            yield key


def _wanted(path: Path, stage: str, key: str, values: Mapping[str, Any]) -> Any:
    value: Any = values
    for part in key.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    if value is _MISSING:
        raise ParamsError(
            f"{path}: {key}: missing, and {PIPELINE} reads it (stage {stage}); {_way_out(key)}"
        )
    return value


def _way_out(key: str) -> str:
    value: Any = File
    for part in key.split("."):
        if isinstance(value, type) and issubclass(value, BaseModel):
            field = value.model_fields.get(part)
            value = None if field is None or field.is_required() else field.get_default()
        else:
            value = getattr(value, part, None)
    if value is None:
        return "add it"
    told = (
        value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value
    )
    text = json.dumps(told).replace('"', "")
    return f"add its default, `{key.rpartition('.')[2]}: {text}`"
