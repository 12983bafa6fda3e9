"""Errors of pydantic in the words of someone who edits params.yaml."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from pipeline.messages import shortened, suggestion

Block = type[BaseModel]
_LITERAL = re.compile(r"'([^']*)'")
_KNOWN = re.compile(r"^(?P<text>.*) \(known: (?P<names>[^()]*)\)$")
_KINDS = {
    "a block": ("model_type", "dict_type", "mapping_type", "model_attributes_type"),
    "a list": ("tuple_type", "list_type"),
    "text": ("string_type",),
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing"),
    "true or false": ("bool_type", "bool_parsing"),
}
_EXPECTED = {name: kind for kind, names in _KINDS.items() for name in names}


class Fault(NamedTuple):
    """One thing that is wrong in a file.

    Attributes:
        keys: the way to the value.
        text: what is wrong with it and what to do.
        asked: the value, where the text does not name it.
        fits: what would fit, if the value is of another kind; branches of a union are joined.
    """

    keys: tuple[str, ...]
    text: str = ""
    asked: str = ""
    fits: str = ""

    def line(self) -> str:
        """Text and value."""
        text = f"expected {self.fits}{self.text}" if self.fits else self.text
        return f"{text} (got {self.asked})" if self.asked else text


def faults(kind: Block, raw: Any, errors: Iterable[Any]) -> list[Fault]:
    """What pydantic found in `raw` by the schema `kind`, the most helpful first.

    A value that fits no branch of a union is one fault. Unknown keys come first, because a mistyped
    key also makes the right one appear missing.
    """
    found: dict[tuple[str, ...], Fault] = {}
    for error in sorted(errors, key=lambda e: e["type"] != "extra_forbidden"):
        fault = _fault(kind, raw, error)
        found[fault.keys] = _joined(found[fault.keys], fault) if fault.keys in found else fault
    parents = {keys[:n] for keys in found for n in range(len(keys))}
    return [fault for keys, fault in found.items() if keys not in parents]


def _joined(one: Fault, other: Fault) -> Fault:
    """Of two branches of a union: the one of the right kind, else what either expects."""
    if not one.fits or not other.fits:
        return other if one.fits else one
    return one if other.fits in one.fits else one._replace(fits=f"{one.fits} or {other.fits}")


def _fault(kind: Block, raw: Any, error: Any) -> Fault:
    loc, name, asked = error["loc"], error["type"], error["input"]
    keys = _keys(raw, loc, name)
    if name == "extra_forbidden":
        return Fault(keys, f"unknown key; {suggestion(keys[-1], _owner(kind, loc).model_fields)}")
    if name == "missing":
        return Fault(keys, f"missing; add `{keys[-1]}: {_form(_annotation(kind, loc))}`")
    if loc[-1:] == ("[key]",):
        return Fault(keys, f"a key is text; put {as_yaml(asked)} in quotes")
    if name in ("literal_error", "enum", "union_tag_invalid"):
        context = error["ctx"]
        names = _LITERAL.findall(context.get("expected") or context["expected_tags"])
        if len(names) == 1:
            return Fault(keys, asked=short(asked), fits=f"'{names[0]}'")
        asked = context.get("tag", asked)
        return Fault(keys, f"{short(asked)} is unknown; {suggestion(asked, names)}")
    if name in _EXPECTED:
        return _other_kind(kind, keys, error)
    return _refused(kind, loc, keys, error)


def _other_kind(kind: Block, keys: tuple[str, ...], error: Any) -> Fault:
    fits, asked, loc = _EXPECTED[error["type"]], error["input"], error["loc"]
    form = _form(_annotation(kind, loc))
    if fits in ("a block", "a list") and form != "...":
        fits = f"{fits}, `{keys[-1]}: {form}`"
    elif fits == "a block":
        fits = f"{fits} of keys"
    elif fits == "text" and isinstance(asked, int | float | date):
        examples = _examples(kind, loc)
        way_out = f"write it as {examples[0]}" if examples else f"put {as_yaml(asked)} in quotes"
        return Fault(keys, f"; {way_out}", fits=fits)
    return Fault(keys, "", short(asked), fits)


def _refused(kind: Block, loc: Sequence[Any], keys: tuple[str, ...], error: Any) -> Fault:
    """A value outside its range or refused by a validator of ours."""
    asked, text = error["input"], error["msg"].removeprefix("Value error, ")
    field, _, rest = text.partition(": ")
    if rest and field in _owner(kind, (*loc, "")).model_fields:  # a validator of a whole block
        keys, text = (*keys, field), rest
        if isinstance(asked, Mapping):
            if field not in asked:
                return Fault(keys, text)
            asked = asked[field]
    if (known := _KNOWN.match(text)) is not None:
        name = asked if isinstance(asked, str) else _quoted(known["text"])
        return Fault(keys, f"{known['text']}; {suggestion(name, known['names'].split(', '))}")
    if error["type"] == "string_pattern_mismatch":
        examples, pattern = _examples(kind, loc), error["ctx"]["pattern"]
        text = f"write it as {examples[0]}" if examples else f"not of the form {pattern}"
    if error["type"] == "too_short":
        text = f"needs at least {error['ctx']['min_length']} value"
    return Fault(keys, text.replace("Input should be", "must be"), short(asked))


def short(value: object) -> str:
    """`repr` of a value of any size, shortened to about 60 characters."""
    if value is None:
        return "nothing"
    shape = reprlib.Repr()
    shape.maxlevel, shape.maxdict, shape.maxlist, shape.maxtuple = 2, 2, 3, 3
    shape.maxstring = shape.maxother = shape.maxlong = 40
    try:
        return shortened(shape.repr(value), 64)
    except ValueError:  # an integer with more digits than Python prints
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "?"


def as_yaml(value: object) -> str:
    """A scalar as it is written in a YAML file."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return shortened(str(value)) if isinstance(value, date) else short(value)


def _keys(raw: Any, loc: Sequence[Any], name: str) -> tuple[str, ...]:
    """The keys in `loc`, without the names that pydantic gives to branches of a union."""
    found, value = [], raw
    for i, part in enumerate(loc):
        last = i == len(loc) - 1
        if _has(value, part):
            value = value[part]
        elif loc[i + 1 : i + 2] == ("[key]",):  # pydantic has made it text
            part = next((as_yaml(k) for k in value if str(part) in (str(k), repr(k))), part)
        elif not (last and name in ("missing", "extra_forbidden")):
            continue
        found.append(shortened(str(part)))
    return tuple(found)


def _has(value: Any, part: Any) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, Sequence) and isinstance(part, int) and part < len(value)


def _quoted(text: str) -> str:
    found = _LITERAL.search(text)
    return found[1] if found else ""


def _owner(kind: Block, loc: Sequence[Any]) -> Block:
    """The block that has the last key of `loc`."""
    choices = [kind]
    for part in loc[:-1]:
        tagged = [c for c in choices if part in (c.__name__, _tag(c))]
        field = next((c.model_fields[part] for c in choices if part in c.model_fields), None)
        if tagged:
            choices = tagged
        elif field is not None:
            choices = list(_models_in(field.annotation)) or choices
    return choices[0]


def _annotation(kind: Block, loc: Sequence[Any]) -> Any:
    owner = _owner(kind, loc)
    if loc[-1] in owner.model_fields:
        return owner.model_fields[loc[-1]].annotation
    return owner if owner is not kind else None  # an entry such as trainings.NAME


def _examples(kind: Block, loc: Sequence[Any]) -> list[Any]:
    field = _owner(kind, loc).model_fields.get(loc[-1])
    return (field.examples if field is not None else None) or []


def _tag(kind: Block) -> Any:
    return kind.model_fields["name"].default if "name" in kind.model_fields else None


def _form(annotation: Any) -> str:
    """What a value looks like: its required keys, else its first; "..." if nothing is known."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        needed = [key for key in fields if fields[key].is_required()] or list(fields)[:1]
        return f"{{{', '.join(f'{key}: ...' for key in needed)}}}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"{{NAME: {_form(arguments[1])}}}"
    if origin is tuple:
        return "[...]"
    forms = [_form(branch) for branch in arguments] if origin in (Union, UnionType) else []
    return next((form for form in forms if form != "..."), "...")


def _models_in(annotation: Any) -> Iterator[Block]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
