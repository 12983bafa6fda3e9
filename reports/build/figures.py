"""Figures of a study (SVG and PNG with deterministic bytes) and their data as CSV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import replacing, write_text
from reports.build.style import MARKERS, Style, Styles
from reports.build.table import dicts, without_seed
from reports.build.tables import scores_of, whole

if TYPE_CHECKING:
    import pandas as pd

_STYLE = {
    "svg.hashsalt": "espalier",  # makes the ids in the SVG the same in every run
    "svg.fonttype": "path",
    "figure.figsize": (6.4, 4.2),
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "legend.frameon": False,
}
_DARK = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), "#e6edf3")
_DARK |= dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), "#9da7b3")
_DARK |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), "#0d1117")
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {"Software": None}}
_MOST_ROWS = 10_000  # of curves.csv: 450 kB
_BESIDE = 6  # a legend with more entries stands beside the axes
_RANKED = {
    "weights": "weights",
    "all": "all parameters",
    "all_strict": "all parameters, strict",
    "channels": "channels",
}
Draw = Callable[[Any], Callable[[], None] | None]


def sweep_data(points: pd.DataFrame) -> pd.DataFrame:
    """One row per sweep point, for the sweep figures and `dvc plots`. Sparsity and sizes are
    fractions, scores as recorded."""
    import pandas as pd

    names = ("training", "model", "method", "seed", "ranked", "scope", "recalibrated")
    sizes = ("params_kept", "params_nonzero", "macs_kept", "macs_nonzero")
    data = {
        "line": [line_of(run) for run in dicts(points)],
        **{name: points.get(f"params.{name}") for name in names},
        "sparsity": points.get("metrics.sparsity/target"),
        **{size: _fraction(points, size) for size in sizes},
    }
    scores = scores_of(points)
    data |= {score: points.get(f"metrics.final/{score}") for score in scores}
    data["score"] = data[scores[0]] if scores else None  # one name for it in every study
    return pd.DataFrame(data, index=points.index)


def line_of(run: Mapping[str, Any]) -> str:
    """The name of a curve: the training without its seed, and a ranking within layers."""
    layer = ", per layer" if run.get("params.scope") == "layer" else ""
    return without_seed(str(run["params.training"]), run["params.seed"]) + layer


def write_figures(
    prunings: pd.DataFrame,
    points: pd.DataFrame,
    curves: pd.DataFrame,
    methods: Mapping[str, str],
    styles: Styles,
    folder: Path,
) -> None:
    """sweep.csv, curves.csv, and the figures that have data: scores against sparsity, one figure
    per kind of unit ranked, and the training curves. `methods`: training -> its method.

    Of long curves curves.csv holds the drawn metric only, so that git can keep the file; the
    records hold all.
    """
    sweep = sweep_data(points)
    write_text(folder / "sweep.csv", sweep.to_csv(index=False, lineterminator="\n"))
    shown = _shown_metric(curves)
    written = curves if len(curves) <= _MOST_ROWS else curves[curves["metric"] == shown]
    write_text(folder / "curves.csv", written.to_csv(index=False, lineterminator="\n"))
    score = next(iter(scores_of(prunings) or scores_of(points)), None)
    for ranked, part in sweep.groupby("ranked", sort=False) if score in sweep else ():
        stem = folder / f"accuracy_sparsity-{ranked}"
        draw = partial(_accuracy_sparsity, sweep=part, score=str(score), styles=styles)
        save_figure(stem, draw)
    if shown:
        part = curves[curves["metric"] == shown]
        part = part.assign(
            line=[without_seed(t) for t in part["training"]],
            method=[methods.get(t, "") for t in part["training"]],
        )
        save_figure(folder / "curves", lambda ax: _curves(ax, part, shown, styles))


def _fraction(runs: pd.DataFrame, size: str) -> Any:
    if f"metrics.size/{size}" not in runs:
        return None
    what = size.partition("_")[0]
    return runs[f"metrics.size/{size}"] / [whole(run, what) for run in dicts(runs)]


def _accuracy_sparsity(ax: Any, sweep: pd.DataFrame, score: str, styles: Styles) -> None:
    """Mean over seeds, band = one standard deviation; dashed = BatchNorm recalibrated."""
    for style, label, part in _lines(sweep, styles):
        for recalibrated, dashes in (("false", "-"), ("true", "--")):
            chosen = part[part["recalibrated"] == recalibrated]
            name = label + (", BN recalibrated" if recalibrated == "true" else "")
            if len(chosen):
                draw_band(ax, chosen.groupby("sparsity")[score], style, dashes, name)
    (ranked,) = sweep["ranked"].unique()
    ax.set(xlabel=f"sparsity (fraction of {_RANKED[ranked]} removed)", ylabel=f"test {score} (%)")


def _curves(ax: Any, curves: pd.DataFrame, metric: str, styles: Styles) -> None:
    """Mean over seeds, band = one standard deviation."""
    for style, label, part in _lines(curves, styles):
        draw_band(ax, part.groupby(part["epoch"] + 1)["value"], style, style.dashes, label)
    ax.set(xlabel="epoch", ylabel=metric)


def draw_band(ax: Any, groups: Any, style: Style, dashes: str, label: str | None) -> None:
    """Mean of grouped values, band = one standard deviation."""
    stats = groups.agg(["mean", "std"]).fillna(0.0)
    x, mean, deviation = stats.index, stats["mean"], stats["std"]
    every = max(1, len(x) // 8)
    ax.plot(x, mean, dashes, color=style.light, marker=MARKERS[style.marker], ms=4,
            markevery=every, lw=1.4, label=label)  # fmt: skip
    ax.fill_between(
        x, mean - deviation, mean + deviation, color=style.light, alpha=0.15, linewidth=0
    )


def _shown_metric(curves: pd.DataFrame) -> str | None:
    found = set(curves["metric"])
    wanted = ("validation/top1", "validation/f1", "train/top1", "validation/loss", "train/loss")
    return next((m for m in wanted if m in found), None)


def _lines(frame: pd.DataFrame, styles: Styles) -> Iterator[tuple[Style, str, pd.DataFrame]]:
    """Style, label and rows of each line."""
    for line, part in frame.groupby("line", sort=False):
        yield styles(part["method"].iloc[0], line.partition(",")[0]), str(line), part


def save_figure(
    stem: Path,
    draw: Draw,
    panels: tuple[int, int] | None = None,
    formats: Sequence[str] = ("svg", "png"),
    dark: bool = False,
) -> None:
    """Draw on new axes and write `stem`.svg and `stem`.png with deterministic bytes. What `draw`
    returns is called once the layout is known. With `panels`, (rows, columns), `draw` gets an array
    of axes and makes its own legend. `dark`: light text on a dark ground."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, **(_DARK if dark else {})}):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        if panels is None:
            ax = figure.add_subplot()
            finish = draw(ax)
            _add_legend(ax)
        else:
            figure.set_size_inches(4.2 * panels[1] + 1.8, 3.4 * panels[0])
            finish = draw(figure.subplots(*panels, squeeze=False))
        if finish:
            figure.draw_without_rendering()
            finish()
        for suffix in formats:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=_METADATA[suffix], dpi=150)
            with replacing(stem.with_suffix(f".{suffix}")) as temporary:
                temporary.write_bytes(buffer.getvalue())


def _add_legend(ax: Any) -> None:
    entries = len(ax.get_legend_handles_labels()[1])
    if entries > _BESIDE:
        ax.figure.legend(loc="outside right upper")
        ax.figure.set_size_inches(9.2, max(4.2, 0.2 * entries + 0.4))
    elif entries:
        ax.legend()
