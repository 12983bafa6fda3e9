"""Score against a cost: marks with names, error bars, the Pareto front, outliers at the edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reports.build.style import MARKERS, Style, robust_range

_PLACES = ((6, 5, "left"), (-6, 5, "right"), (6, -11, "left"), (-6, -11, "right"),
           (0, 9, "center"), (0, -15, "center"), (6, 14, "left"), (-6, 14, "right"))  # fmt: skip
"""Where a name may stand beside its mark: offset in points, alignment."""


@dataclass(frozen=True)
class Spot:
    """A mark: `sx`, `sy` standard deviations; `best`: on the Pareto front; `line`: marks of one
    line are joined instead of named."""

    name: str
    style: Style
    x: float
    y: float
    sx: float = 0.0
    sy: float = 0.0
    best: bool = False
    line: str = ""


def draw_spots(
    ax: Any, spots: Sequence[Spot], log: bool = False, dark: bool = False
) -> Callable[[], None]:
    """Draw; returns what puts the names in place once the figure has its layout."""
    if log:
        ax.set_xscale("log")
    rows = [s.y for s in spots if not s.line]
    low, high = robust_range(rows if len(rows) >= 3 else [s.y for s in spots])
    room = 0.09 * (high - low or abs(high) or 1.0)
    ax.set_ylim(low - room, high + room)
    ink = "white" if dark else "black"
    front = sorted((s.x, s.y) for s in spots if s.best)
    ax.plot(*zip(*front, strict=True), "--", color=ink, lw=0.8, drawstyle="steps-post", zorder=1)
    names = []
    for line in dict.fromkeys(s.line for s in spots if s.line):
        part = sorted((s.x, s.y) for s in spots if s.line == line)
        colour = _colour(next(s for s in spots if s.line == line), dark)
        ax.plot(*zip(*part, strict=True), ".-", color=colour, alpha=0.45, lw=1, ms=3, zorder=1)
    for s in spots:
        if s.line:
            continue
        y = min(max(s.y, low - 0.6 * room), high + 0.6 * room)
        outlier = y != s.y
        ax.errorbar(
            s.x, y, xerr=s.sx or None, yerr=None if outlier else s.sy or None, ls="",
            color=_colour(s, dark), marker=MARKERS[s.style.marker], ms=6.5,
            markeredgecolor=ink if s.best else _colour(s, dark), elinewidth=0.8, zorder=3,
        )  # fmt: skip
        arrow = f" {'↓' if s.y < y else '↑'} {s.y:.1f}" if outlier else ""
        names.append((s.name + arrow, s.x, y, outlier))
    return lambda: _put_names(ax, names, ink)


def legend_of(spots: Sequence[Spot], dark: bool = False) -> tuple[list[Any], list[str]]:
    """Handles and labels: one per row, and one for lines of one-shot points."""
    from matplotlib.lines import Line2D

    rows = {s.name: s for s in spots if not s.line}
    handles = [
        Line2D([], [], ls="", marker=MARKERS[s.style.marker], color=_colour(s, dark))
        for s in rows.values()
    ]
    labels = list(rows)
    if any(s.line for s in spots):
        handles.append(Line2D([], [], marker=".", color="grey", alpha=0.6))
        labels.append("one-shot, no retraining")
    return handles, labels


def _colour(spot: Spot, dark: bool) -> str:
    return spot.style.dark if dark else spot.style.light


def _put_names(ax: Any, names: Sequence[tuple[str, float, float, bool]], ink: str) -> None:
    """Write each name beside its mark where it covers neither a mark nor another name; outliers
    first. A name without such a place is left to the legend."""
    from matplotlib.transforms import Bbox

    figure = ax.figure
    renderer = figure.canvas.get_renderer()
    inside = ax.get_window_extent(renderer)
    marks = ax.transData.transform([(x, y) for _, x, y, _ in names])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    for name, x, y, _ in sorted(names, key=lambda n: not n[3]):
        for dx, dy, side in _PLACES:
            text = ax.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=7,
                color=ink, in_layout=False, zorder=4,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0
            if fits and box.y1 <= inside.y1 and not any(box.overlaps(t) for t in taken):
                taken.append(box)
                break
            text.remove()
