"""Figures of a study (SVG and PNG, byte for byte the same) and the data behind them as CSV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import replacing, write_text
from reports.build.table import dicts
from reports.build.tables import scores_of, whole

if TYPE_CHECKING:
    import pandas as pd

_STYLE = {
    "svg.hashsalt": "espalier",  # ids in the SVG would differ from run to run
    "svg.fonttype": "path",
    "figure.figsize": (6.4, 4.2),
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
}
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {"Software": None}}
_MAX_LEGEND = 16
_RANKED = {"weights": "weights", "all": "all parameters", "channels": "channels"}


def sweep_data(points: pd.DataFrame) -> pd.DataFrame:
    """One row per sweep point: what the sweep figures and `dvc plots` show. Sparsity and sizes
    are fractions, scores as recorded."""
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
    data["score"] = data[scores[0]] if scores else None  # by one name in every study
    return pd.DataFrame(data, index=points.index)


def line_of(run: Mapping[str, Any]) -> str:
    """The name of a curve: the training without its seed, and a protocol that is not the usual."""
    name = str(run["params.training"]).removesuffix(f"-s{run['params.seed']}")
    layer = ", per layer" if run.get("params.scope") == "layer" else ""
    return name + layer


def write_figures(
    prunings: pd.DataFrame, points: pd.DataFrame, curves: pd.DataFrame, folder: Path
) -> None:
    """sweep.csv, curves.csv, and those of the figures that have data: the scores by sparsity, a
    figure for each thing that was ranked, the scores by MACs, the training curves."""
    sweep = sweep_data(points)
    write_text(folder / "sweep.csv", sweep.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "curves.csv", curves.to_csv(index=False, lineterminator="\n"))
    score = next(iter(scores_of(prunings) or scores_of(points)), None)
    for ranked, part in sweep.groupby("ranked", sort=False) if score in sweep else ():
        stem = folder / f"accuracy_sparsity-{ranked}"
        draw = partial(_accuracy_sparsity, sweep=part, score=str(score), ranked=str(ranked))
        save_figure(stem, draw)
    if score and (len(prunings) or len(sweep)):
        save_figure(folder / "accuracy_macs", lambda ax: _accuracy_macs(ax, prunings, sweep, score))
    shown = _shown_metric(curves)
    if shown:
        save_figure(folder / "curves", lambda ax: _curves(ax, curves, shown))


def _fraction(runs: pd.DataFrame, size: str) -> Any:
    if f"metrics.size/{size}" not in runs:
        return None
    what = size.partition("_")[0]
    return runs[f"metrics.size/{size}"] / [whole(run, what) for run in dicts(runs)]


def _accuracy_sparsity(ax: Any, sweep: pd.DataFrame, score: str, ranked: str) -> None:
    """Mean over seeds, band = one standard deviation; dashed = BatchNorm recalibrated."""
    for colour, label, part in _lines(sweep):
        for recalibrated, style in (("false", "-"), ("true", "--")):
            chosen = part[part["recalibrated"] == recalibrated]
            if chosen.empty:
                continue
            stats = chosen.groupby("sparsity")[score].agg(["mean", "std"]).fillna(0.0)
            name = label + (", BN recalibrated" if recalibrated == "true" else "")
            ax.plot(stats.index, stats["mean"], style, color=colour, marker=".", label=name)
            low, high = stats["mean"] - stats["std"], stats["mean"] + stats["std"]
            ax.fill_between(stats.index, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel=f"sparsity (fraction of {_RANKED[ranked]} removed)", ylabel=f"test {score} (%)")


def _accuracy_macs(ax: Any, prunings: pd.DataFrame, sweep: pd.DataFrame, score: str) -> None:
    """Lines: sweep points without retraining, mean over seeds; markers: prunings, one per seed.
    Where a sweep cut channels, only those are shown: their MACs are really gone."""
    cut = sweep[sweep["ranked"] == "channels"]
    sweep = sweep if cut.empty else cut
    if score in sweep:
        for colour, label, part in _lines(sweep):
            best = part[part["recalibrated"] == "true"]  # a network without BatchNorm has none
            mark = "one-shot" if best.empty else "one-shot, BN recalibrated"
            means = (
                (part if best.empty else best).groupby("sparsity")[["macs_nonzero", score]].mean()
            )
            x = 100.0 * means["macs_nonzero"]
            ax.plot(x, means[score], "-", color=colour, alpha=0.6, label=f"{label}, {mark}")
    if len(prunings):
        network = prunings["params.model"].str.rpartition("/")[2]
        shown = prunings.assign(
            line=network + " " + prunings["params.method"],
            x=100.0 * _fraction(prunings, "macs_nonzero"),
        )
        for number, (colour, label, part) in enumerate(_lines(shown)):
            marker = "os^Dv<>P*X"[number % 10]
            y = part[f"metrics.final/{score}"]
            ax.plot(part["x"], y, marker, color=colour, label=label)
    ax.set(xlabel="MACs, non-zero (% of the dense network)", ylabel=f"test {score} (%)")


def _curves(ax: Any, curves: pd.DataFrame, metric: str) -> None:
    for training, part in curves[curves["metric"] == metric].groupby("training", sort=False):
        ax.plot(part["epoch"] + 1, part["value"], label=training)
    ax.set(xlabel="epoch", ylabel=metric)


def _shown_metric(curves: pd.DataFrame) -> str | None:
    found = set(curves["metric"])
    wanted = ("validation/top1", "validation/f1", "train/top1", "validation/loss", "train/loss")
    return next((m for m in wanted if m in found), None)


def _lines(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Colour, label and rows of each line."""
    for number, (label, part) in enumerate(frame.groupby("line", sort=False)):
        yield f"C{number % 10}", str(label), part


def save_figure(
    stem: Path,
    draw: Callable[[Any], None],
    panels: tuple[int, int] | None = None,
    formats: Sequence[str] = ("svg", "png"),
) -> None:
    """Draw on fresh axes; `stem`.svg and `stem`.png, byte for byte the same every time."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        if panels is None:
            ax = figure.add_subplot()
            draw(ax)
            if 0 < len(ax.get_legend_handles_labels()[1]) <= _MAX_LEGEND:
                ax.legend()
        else:  # an array of (rows, columns); `draw` makes its own legend
            figure.set_size_inches(4.2 * panels[1], 3.4 * panels[0])
            draw(figure.subplots(*panels, squeeze=False))
        for suffix in formats:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=_METADATA[suffix], dpi=150)
            with replacing(stem.with_suffix(f".{suffix}")) as temporary:
                temporary.write_bytes(buffer.getvalue())
