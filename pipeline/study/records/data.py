"""The record of a study's data: the part of the data card that determines network sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict


@dataclass(frozen=True)
class DataRecord:
    """A prepared data set.

    Attributes:
        name: name of the data set, as in params.yaml.
        input_shape: shape of one example as the network sees it.
        num_classes: number of labels.
        splits: number of examples (images, or windows of text) of each split.
        card_sha: SHA-256 of the data card, which lists the SHA-256 of every prepared file. It is
            the "data" parent of every training on this data.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)
    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    splits: Mapping[str, int]
    card_sha: str
    kind: Literal["data"] = "data"
    schema_version: Literal[1] = 1


def data_record(card: Mapping[str, Any], card_sha: str) -> DataRecord:
    """Make the record of a data card."""
    return DataRecord(
        name=card["name"],
        input_shape=tuple(card["input_shape"]),
        num_classes=card["num_classes"],
        splits={name: _size(counts) for name, counts in card["counts"].items()},
        card_sha=card_sha,
    )


def _size(counts: Mapping[str, int]) -> int:
    return counts["total"] if "total" in counts else counts["windows"]
