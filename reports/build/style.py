"""One colour per method and one marker per row, the same in every figure and on the page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PALETTE: dict[str, tuple[str, str]] = json.loads(
    (Path(__file__).parent / "web" / "palette.json").read_text(encoding="utf-8")
)
"""Method -> its colour on a light and on a dark ground; "" is any method not listed."""
MARKERS = "os^DvpPhX8"  # the page draws the same ten outlines, in this order
DASHES = ("-", "--", ":", "-.")
FENCE = 3.0  # interquartile ranges beyond the quartiles; a value outside is an outlier


@dataclass(frozen=True)
class Style:
    """How a row is drawn. `marker`: its number in MARKERS; `rank`: its place among the rows of its
    method."""

    light: str
    dark: str
    marker: int
    rank: int

    @property
    def dashes(self) -> str:
        return DASHES[self.rank % len(DASHES)]


class Styles:
    """The style of every row of a study: rows of one method share a colour, not a marker.

    Args:
        trainings, rows: method and name of each, in a fixed order. A row takes the marker of the
            training it is named after unless that is a row itself: gates-macs50 that of gates.
    """

    def __init__(
        self, trainings: Iterable[tuple[str, str]], rows: Iterable[tuple[str, str]]
    ) -> None:
        self._ranks: dict[str, dict[str, int]] = {}
        for method, name in trainings:
            ranks = self._ranks.setdefault(method, {})
            ranks.setdefault(name, len(ranks))
        taken = set(rows := list(rows))
        for method, name in rows:
            ranks = self._ranks.setdefault(method, {})
            after = [n for n in ranks if name.startswith(f"{n}-") and (method, n) not in taken]
            if name not in ranks:
                ranks[name] = ranks[after[0]] if after else len(ranks)
                taken |= {(method, n) for n in after[:1]}

    def __call__(self, method: str, name: str) -> Style:
        listed = method if method in PALETTE else ""
        rank = self._ranks.get(method, {}).get(name, 0)
        first = list(PALETTE).index(listed)
        return Style(*PALETTE[listed], (first + rank) % len(MARKERS), rank)


def robust_range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value that is no outlier; of all values where there are fewer than five
    or more than a quarter would be outliers."""
    if len(values) >= 5:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        room = max(FENCE * (high - low), 0.02 * abs(statistics.median(values)))
        inside = [v for v in values if low - room <= v <= high + room]
        if 4 * len(inside) >= 3 * len(values):
            return min(inside), max(inside)
    return min(values), max(values)


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the words that all of them start with: resnet8-hspg, resnet8-sfw -> hspg,
    sfw."""
    words = [name.split("-") for name in names]
    same = 0
    while len(names) > 1 and all(len(w) > same + 1 and w[same] == words[0][same] for w in words):
        same += 1
    return ["-".join(w[same:]) for w in words]
