"""Read a params file as plain values. Refuse files that are unreadable, non-finite or too large."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from pipeline.messages import shortened
from pipeline.study.params.errors import ParamsError
from pipeline.study.params.wording import short

MOST_BYTES = 4_000_000
MOST_VALUES = 300_000
DEEPEST = 24
LARGEST = 2**63  # integers that every library here can hold


def read_values(path: Path) -> dict[str, Any]:
    """The blocks of a params file.

    Raises:
        ParamsError: the file does not exist, or is not a file, UTF-8, YAML or a mapping; a number
            is not finite or has more than 64 bits; there are more or deeper values than any study
            has.
    """
    raw = _parsed(path, _text(path))
    if not isinstance(raw, dict):
        kind = {type(None): "nothing", list: "a list"}.get(type(raw), short(raw))
        raise ParamsError(f"{path}: expected blocks such as `train:`, got {kind}")
    _check_values(path, raw)
    return raw


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such file; run from the folder of a params.yaml") from error
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise ParamsError(f"{path}: {len(data)} bytes: no study is larger than {MOST_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ParamsError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error


def _parsed(path: Path, text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        found = re.search(r'found duplicate key "([^"]*)"', str(error))
        name = shortened(found.group(1)) if found else "?"
        raise ParamsError(
            f"{path}:{_at(error)}: {name!r} is there twice; names are unique"
        ) from error
    except MarkedYAMLError as error:
        why = shortened(str(error.problem or error.context or "syntax error"), 200)
        raise ParamsError(f"{path}:{_at(error)}: not valid YAML: {why}") from error
    except Exception as error:  # a value's constructor may raise any, e.g. for a date without month
        why = shortened(str(error) or type(error).__name__, 200)
        raise ParamsError(f"{path}: not valid YAML: {why}") from error


def _at(error: MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 0


def _check_values(path: Path, raw: dict[str, Any]) -> None:
    """Check all values without recursion, so that deep nesting and cyclic aliases are refused."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), raw)]
    seen = 0
    while todo:
        where, value = todo.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise ParamsError(f"{path}: more than {MOST_VALUES} values (aliases count each time)")
        if len(where) > DEEPEST:
            block = ".".join(where[:3])
            raise ParamsError(
                f"{path}: {block}: nested deeper than {DEEPEST} (an alias of itself?)"
            )
        if isinstance(value, dict):
            todo += [((*where, shortened(str(k))), v) for k, v in value.items()]
        elif isinstance(value, list):
            todo += [((*where, str(i)), v) for i, v in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ParamsError(f"{path}: {'.'.join(where)}: {value} is not a finite number")
        elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
            raise ParamsError(f"{path}: {'.'.join(where)}: {short(value)}: more than 64 bits")
