"""The comparison as one figure: a row per network, a panel per quantity."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.build.candidates import AXES, Axis, Candidate
from reports.build.compare import front
from reports.build.figures import save_figure
from reports.build.scatter import Spot, draw_spots, legend_of
from reports.build.style import Styles, short_names
from reports.build.table import over_seeds

SHOWN = [a for a in AXES if a.key in ("macs_nonzero", "params_nonzero", "cost")]


def write_compare_figure(
    rows: Sequence[Candidate], score: str, styles: Styles, folder: Path
) -> None:
    """compare.svg and compare.png; nothing without rows."""
    rows = _recalibrated([c for c in rows if score in c.values])
    leagues = list(dict.fromkeys(c.league for c in rows))

    def draw(panels: Any) -> Callable[[], None]:
        later = []
        for line, league in zip(panels, leagues, strict=True):
            rivals = [c for c in rows if c.league == league]
            for ax, axis in zip(line, SHOWN, strict=True):
                spots = _spots(rivals, score, axis, styles)
                if not spots:
                    ax.set_axis_off()
                    continue
                log = not axis.of and min(s.x for s in spots) > 0
                later.append(draw_spots(ax, spots, log))
                ax.set(xlabel=f"{axis.label} ({axis.unit})", ylabel=f"test {score} (%)")
            line[0].set_title(" on ".join(league), loc="left", fontsize="medium")
            spots = _spots(rivals, score, SHOWN[0], styles)
            line[-1].legend(*legend_of(spots), bbox_to_anchor=(1.02, 1), loc="upper left")

        def put_names() -> None:
            for put in later:
                put()

        return put_names

    if leagues:
        save_figure(folder / "compare", draw, (len(leagues), len(SHOWN)))


def _recalibrated(rows: Sequence[Candidate]) -> list[Candidate]:
    """One-shot points with recalibrated BatchNorm where a network has any, not both."""
    both = {c.line for c in rows if c.kind == "one-shot" and "recalibrated" in c.name}
    bare = re.compile(", BN recalibrated$")
    hidden = {bare.sub("", line) for line in both}
    return [c for c in rows if c.kind != "one-shot" or c.line not in hidden]


def _spots(rows: Sequence[Candidate], score: str, axis: Axis, styles: Styles) -> list[Spot]:
    rows = [c for c in rows if axis.key in c.values]
    named = [c for c in rows if c.kind != "one-shot"]
    best = {named[i].name for i in front(named, score, axis.key)}
    short = dict(zip((c.name for c in named), short_names([c.name for c in named]), strict=True))
    spots = []
    for c in rows:
        (x, sx), (y, sy) = (over_seeds(k, c.values[k]).values() for k in (axis.key, score))
        style, line = styles(c.method, c.styled_as), c.line if c.kind == "one-shot" else ""
        spot = Spot(short.get(c.name, ""), style, x or 0.0, y or 0.0, sx or 0.0, sy or 0.0)
        spots.append(replace(spot, best=c.name in best, line=line))
    return spots
