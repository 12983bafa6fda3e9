"""Errors in a params file: one line with the file, the key and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.messages import one_line, shortened, suggestion
from pipeline.study.params.wording import Fault, faults


class ParamsError(ValueError):
    """params.yaml is invalid; the message says where, and lists valid values.

    Attributes:
        lines: all errors, the most helpful one first; the message is the first line.
    """

    def __init__(self, *lines: str) -> None:
        more = len(lines) - 1
        others = f" (and {more} more; `espalier check` lists all)" if more else ""
        super().__init__(one_line(lines[0]) + others)
        self.lines = tuple(map(one_line, lines))


def validated(path: Path, where: str, kind: type[Any], raw: Any) -> Any:
    """`raw` as a `kind`.

    Args:
        where: key path of `raw` in the file; "" for the whole file.

    Raises:
        ParamsError: has a line for each error.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = faults(kind, raw, error.errors())
        raise ParamsError(*(_line(path, where, fault) for fault in found)) from error


def named(path: Path, block: str, items: Mapping[str, Any], key: str) -> Any:
    """The entry `key` of a block.

    Raises:
        ParamsError: there is no such entry.
    """
    if key not in items:
        where = f"{path}: {block}.{shortened(key)}"
        raise ParamsError(f"{where}: no such entry; {suggestion(key, items)}")
    return items[key]


def _line(path: Path, where: str, fault: Fault) -> str:
    place = ".".join([where, *fault.keys] if where else fault.keys) or "the file"
    return f"{path}: {place}: {fault.line()}"
