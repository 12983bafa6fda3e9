"""A data set before it is split and prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.data.splits import Split


@dataclass(frozen=True)
class RawData:
    """A data set as its authors published it.

    Attributes:
        sources: md5 of the files read, by path relative to the root; empty for a folder of images.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    sources: Mapping[str, str]
