"""Pairwise distances of the masks that a search drew, epoch by epoch: CSV and figure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import write_text
from reports.build.figures import save_figure

if TYPE_CHECKING:
    import pandas as pd


def write_mask_distances(curves: pd.DataFrame, folder: Path) -> None:
    """One matrix per training and ratio with metrics `mask_distance/<ratio>/<lag>`: the distance to
    the mask `lag` masks earlier. Lag 0 marks an epoch that drew a mask."""
    chosen = curves[curves["metric"].str.startswith("mask_distance/")]
    parts = chosen["metric"].str.split("/", expand=True).reindex(columns=range(3))
    chosen = chosen.assign(ratio=parts[1], lag=parts[2].astype(int))
    for (training, ratio), part in chosen.groupby(["training", "ratio"], sort=False):
        matrix = distance_matrix(part)
        name = f"mask_distance-{training}-{ratio}".replace(".", "_")
        text = matrix.to_csv(index_label="epoch", lineterminator="\n")
        write_text(folder / f"{name}.csv", text)
        title = f"{training}, ratio {ratio}"
        save_figure(folder / name, partial(_draw, matrix=matrix, title=title))


def distance_matrix(part: pd.DataFrame) -> pd.DataFrame:
    """Columns epoch (0-based), lag, value -> symmetric matrix, indexed by trained epochs."""
    import pandas as pd

    epochs = sorted(part.loc[part["lag"] == 0, "epoch"])
    place = {epoch: i for i, epoch in enumerate(epochs)}
    names = [epoch + 1 for epoch in epochs]
    matrix = pd.DataFrame(0.0, index=names, columns=names)
    for epoch, lag, value in zip(part["epoch"], part["lag"], part["value"], strict=True):
        row, column = place[epoch], place[epoch] - lag
        matrix.iat[row, column] = matrix.iat[column, row] = value
    return matrix


def _draw(ax: Any, matrix: pd.DataFrame, title: str) -> None:
    edges = (0.5, len(matrix) + 0.5)
    image = ax.imshow(matrix, origin="lower", extent=(*edges, *edges), vmin=0.0)
    ticks = range(1, len(matrix) + 1, max(1, len(matrix) // 8))
    labels = [str(matrix.index[i - 1]) for i in ticks]
    ax.set_xticks(ticks, labels)
    ax.set_yticks(ticks, labels)
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="mask distance (fraction of channels)")
    ax.set(xlabel="trained epochs", ylabel="trained epochs", title=title)
