"""The comparison as one figure: a row per network, a panel per quantity, one mark per method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.build.candidates import AXES, Candidate
from reports.build.compare import front
from reports.build.figures import save_figure

SHOWN = ("macs_nonzero", "params_nonzero", "cost")
_MARKERS = "os^Dv<>P*X"


def write_compare_figure(rows: Sequence[Candidate], score: str, folder: Path) -> None:
    """compare.svg and compare.png; nothing without rows."""
    rows = [c for c in rows if c.kind != "one-shot" and score in c.values]
    leagues = list(dict.fromkeys(c.league for c in rows))
    if not leagues:
        return
    methods = list(dict.fromkeys(c.method for c in rows))

    def draw(panels: Any) -> None:
        for line, league in zip(panels, leagues, strict=True):
            rivals = [c for c in rows if c.league == league]
            for ax, key in zip(line, SHOWN, strict=True):
                _panel(ax, rivals, methods, score, key)
            line[0].set_ylabel(f"{' on '.join(league)}\ntest {score} (%)")
        handles = {m: h for ax in panels.flat for h, m in zip(*ax.get_legend_handles_labels(),
                                                              strict=True)}  # fmt: skip
        panels.flat[0].figure.legend(
            [handles[m] for m in methods if m in handles],
            [m for m in methods if m in handles],
            loc="outside lower center",
            ncols=min(len(methods), 8),
        )

    save_figure(folder / "compare", draw, (len(leagues), len(SHOWN)))


def _panel(
    ax: Any, rows: Sequence[Candidate], methods: Sequence[str], score: str, key: str
) -> None:
    """Means with a standard deviation each way; dashed: the Pareto front."""
    import statistics

    (axis,) = (a for a in AXES if a.key == key)
    spots = []
    for i, c in enumerate(rows):
        x, y = c.mean(key), c.mean(score)
        if x is None or y is None:
            continue
        several = len(c.seeds) > 1
        number = methods.index(c.method)
        ax.errorbar(
            x, y, color=f"C{number % 10}", marker=_MARKERS[number % 10], label=c.method, ls="",
            xerr=statistics.stdev(c.values[key]) if several else None,
            yerr=statistics.stdev(c.values[score]) if several else None,
        )  # fmt: skip
        spots.append((i, x, y))
    best = front(rows, score, key)
    line = sorted((x, y) for i, x, y in spots if i in best)
    if line:
        ax.plot(*zip(*line, strict=True), "k--", lw=0.8, drawstyle="steps-post", zorder=0)
    ax.set_xlabel(f"{axis.label} ({axis.unit})")
    if not axis.of and spots and min(x for _, x, _ in spots) > 0:
        ax.set_xscale("log")
