"""The first difference of two blocks of settings, by key path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.study.params.wording import short

_ABSENT = object()


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str, str]:
    """Key path and both values as text; ("", "", "") if nothing differs."""
    left, right = dict(_flat(one)), dict(_flat(other))
    for key in sorted({*left, *right}):
        values = left.get(key, _ABSENT), right.get(key, _ABSENT)
        if values[0] != values[1]:
            told = ("nothing" if v is _ABSENT else short(v) for v in values)
            return (key, *told)  # type: ignore[return-value]
    return "", "", ""


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, list(value) if isinstance(value, tuple) else value
