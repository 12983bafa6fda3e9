"""Distribution of the weights of the swept networks: histograms per layer and overall."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import write_text
from pipeline.study.records.sweep import SweepRecord, WeightDistribution
from reports.build.figures import save_figure
from reports.build.style import Styles
from reports.build.table import without_seed

if TYPE_CHECKING:
    import pandas as pd

OVERALL = "all"


def histogram_data(records: Sequence[SweepRecord]) -> pd.DataFrame:
    """One row per training, layer and non-empty bin: `low` < |w| <= `high`, `magnitude` its
    geometric middle, `count` entries, `share` of the layer. Exact zeros are in no bin."""
    import pandas as pd

    columns = ["line", "training", "method", "seed", "layer"]
    columns += ["low", "high", "magnitude", "count", "share"]
    rows = [
        (without_seed(r.training, r.seed), r.training, r.method, r.seed, *row)
        for r in records
        if r.weights
        for row in _rows(r.weights)
    ]
    return pd.DataFrame(rows, columns=columns)


def write_weights(records: Sequence[SweepRecord], styles: Styles, folder: Path) -> dict[str, Path]:
    """weights.csv (overall), weights_layers.csv, a figure of the overall histograms and one figure
    per training of its layers; returns training -> PNG of its layers."""
    data = histogram_data(records)
    overall = data[data["layer"] == OVERALL]
    write_text(folder / "weights.csv", overall.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "weights_layers.csv", data.to_csv(index=False, lineterminator="\n"))
    if len(overall):
        save_figure(folder / "weights", lambda ax: _overall(ax, overall, styles))
    layers = data[(data["layer"] != OVERALL) & (data["count"] > 0)]
    drawn = {}
    for training, part in layers.groupby("training", sort=False):
        stem = folder / "weights" / str(training)
        draw = partial(_layers, data=part, title=str(training))
        save_figure(stem, draw, formats=("png",))  # `dvc plots show` embeds the whole folder
        drawn[str(training)] = stem.with_suffix(".png")
    return drawn


def _rows(found: WeightDistribution) -> Iterator[tuple[Any, ...]]:
    edges, step = found.edges, found.edges[1] / found.edges[0]
    for layer, histogram in found.layers.items():
        total = histogram.zeros + sum(histogram.counts)
        for number, count in enumerate(histogram.counts, histogram.first):
            low = edges[number - 1] if number else 0.0
            high = edges[number] if number < len(edges) else None
            middle = low * math.sqrt(step) if low else edges[0] / math.sqrt(step)
            yield layer, low, high, middle, count, count / total


def _overall(ax: Any, data: pd.DataFrame, styles: Styles) -> None:
    """Share of all parameters per bin, mean over seeds."""
    for label, part in data.groupby("line", sort=False):
        style = styles(part["method"].iloc[0], str(label))
        shares = part.groupby("magnitude")["share"].sum() / part["training"].nunique()
        look = {"color": style.light, "ls": style.dashes}
        ax.step(shares.index, shares, where="mid", label=label, **look)
    ax.set(xscale="log", yscale="log", xlabel="|w|", ylabel="share of all parameters")


def _layers(ax: Any, data: pd.DataFrame, title: str) -> None:
    """One row of the heat map per parameter tensor, in the order of the network."""
    import numpy as np
    from matplotlib.colors import LogNorm

    layers = list(dict.fromkeys(data["layer"]))
    size = np.log10(data["magnitude"])
    width = 0.25 if size.nunique() == 1 else np.diff(np.unique(size)).min()
    column = ((size - size.min()) / width).round().astype(int)
    shares = np.full((len(layers), column.max() + 1), np.nan)
    shares[data["layer"].map(layers.index), column] = data["share"]
    edges = size.min() + width * (np.arange(column.max() + 2) - 0.5)
    rows = np.arange(len(layers) + 1) - 0.5
    norm = LogNorm(vmin=min(1e-4, data["share"].min()), vmax=1.0)
    image = ax.pcolormesh(edges, rows, shares, norm=norm)
    ax.figure.colorbar(image, ax=ax, label="share of the layer's entries")
    ax.figure.set_figheight(max(4.2, 0.16 * len(layers)))
    ax.grid(visible=False)
    ax.invert_yaxis()
    ax.set_yticks(range(len(layers)), layers, fontsize="xx-small")
    ax.set(xlabel="log10 |w|", title=title)
