"""Errors in a params file: one line with the file, the key and the way out."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.messages import one_line, shortened, suggestion

_LITERAL = re.compile(r"'([^']*)'")
_KNOWN = re.compile(r"^(?P<text>.*) \(known: (?P<names>[^()]*)\)$")


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
        # Unknown keys come first: a mistyped key also makes the right one appear missing.
        found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ParamsError(*(_line(path, where, kind, e) for e in found)) from error


def named(path: Path, block: str, items: Mapping[str, Any], key: str) -> Any:
    """The entry `key` of a block.

    Raises:
        ParamsError: there is no such entry.
    """
    if key not in items:
        where = f"{path}: {block}.{shortened(key)}"
        raise ParamsError(f"{where}: no such entry; {suggestion(key, items)}")
    return items[key]


def short(value: object) -> str:
    """`repr` of a value of any size, shortened to about 60 characters."""
    shape = reprlib.Repr()
    shape.maxlevel, shape.maxdict, shape.maxlist, shape.maxtuple = 2, 2, 3, 3
    shape.maxstring = shape.maxother = shape.maxlong = 40
    try:
        return shortened(shape.repr(value), 64)
    except ValueError:  # an integer with more digits than Python prints
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "?"


def _line(path: Path, where: str, kind: type[BaseModel], error: Any) -> str:
    loc = [shortened(str(part)) for part in error["loc"] if part != "[key]"]
    at = f"{path}: {'.'.join([where, *loc] if where else loc) or 'the file'}"
    if error["type"] == "extra_forbidden":
        return f"{at}: unknown key; {suggestion(loc[-1], _fields_at(kind, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{at}: missing"
    asked, text = error["input"], error["msg"].removeprefix("Value error, ")
    if error["type"] in ("literal_error", "enum"):
        names = _LITERAL.findall(error["ctx"]["expected"])
        return f"{at}: {short(asked)} is unknown; {suggestion(asked, names)}"
    if error["loc"][-1:] == ("[key]",):
        return f"{at}: a key is text; put {short(asked)} in quotes"
    if (found := _KNOWN.match(text)) is not None:
        name = asked if isinstance(asked, str) else _quoted(found["text"])
        return f"{at}: {found['text']}; {suggestion(name, found['names'].split(', '))}"
    return f"{at}: {text} (got {short(asked)})"


def _quoted(text: str) -> str:
    found = _LITERAL.search(text)
    return found[1] if found else ""


def _fields_at(kind: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model reached by walking `loc` from `kind`."""
    for part in loc:
        field = kind.model_fields.get(part)
        below = None if field is None else next(_models_in(field.annotation), None)
        kind = below or kind
    return list(kind.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
