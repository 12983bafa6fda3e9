"""One colour per method and one marker per row, the same in every figure; names and outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.registry import method_names
from reports.build.candidates import candidates
from reports.build.compare_figures import write_compare_figure
from reports.build.figures import save_figure, write_figures
from reports.build.scatter import Spot, draw_spots, legend_of
from reports.build.style import MARKERS, PALETTE, Styles, robust_range, short_names
from tests.reports import contest


def test_every_method_has_its_own_colour() -> None:
    assert set(method_names()) <= set(PALETTE)
    for ground in (0, 1):
        assert len({colours[ground] for colours in PALETTE.values()}) == len(PALETTE)


def test_rows_of_a_method_share_its_colour_and_no_marker() -> None:
    rows = [("dense", f"net-p{i}") for i in range(6)] + [("sfw", "net-sfw")]
    styles = Styles([], rows)
    dense = [styles(*row) for row in rows[:-1]]
    assert {style.light for style in dense} == {PALETTE["dense"][0]}
    assert len({style.marker for style in dense}) == 6
    assert styles("sfw", "net-sfw").light == PALETTE["sfw"][0]
    assert styles("mine", "net-mine").light == PALETTE[""][0]


def test_a_row_looks_like_the_training_it_is_named_after() -> None:
    trainings = [("gates", "gates"), ("gates", "wide"), ("dense", "dense")]
    rows = [("dense", "dense"), ("dense", "dense-ft"), ("gates", "gates-macs50")]
    styles = Styles(trainings, [*rows, ("gates", "gates-macs30")])
    assert styles("gates", "gates-macs50") == styles("gates", "gates")
    looks = {styles("gates", n).marker for n in ("gates", "wide", "gates-macs30")}
    assert len(looks) == 3
    assert styles("dense", "dense") != styles("dense", "dense-ft")


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_at_most_a_quarter_of_the_values_is_outside(values: list[float]) -> None:
    low, high = robust_range(values)
    assert low in values
    assert high in values
    assert 4 * sum(low <= v <= high for v in values) >= 3 * len(values)


def test_short_names() -> None:
    assert short_names(["net-a-sfw", "net-a-hspg-p9"]) == ["sfw", "hspg-p9"]
    assert short_names(["net-dense", "net-dense-ft"]) == ["dense", "dense-ft"]
    assert short_names(["net-sfw"]) == ["net-sfw"]


def spots() -> list[Spot]:
    styles = Styles([], [("dense", f"row-{i}") for i in range(8)])
    near = [Spot(f"row-{i}", styles("dense", f"row-{i}"), 10.0 * i, 90.0 + i) for i in range(7)]
    return [*near, Spot("row-7", styles("dense", "row-7"), 35.0, 20.0, best=True)]


def drawn(tmp_path: Path, all_spots: list[Spot]) -> Any:
    kept = []

    def draw(ax: Any) -> Callable[[], None]:
        kept.append(ax)
        return draw_spots(ax, all_spots)

    save_figure(tmp_path / "figure", draw)
    return kept[0]


def test_an_outlier_is_marked_at_the_edge(tmp_path: Path) -> None:
    ax = drawn(tmp_path, spots())
    low, high = ax.get_ylim()
    assert 85 < low < 90
    assert 96 < high < 100
    texts = {text.get_text() for text in ax.texts}
    assert "row-7 ↓ 20.0" in texts
    assert texts > {"row-0", "row-6"}


def test_names_do_not_overlap(tmp_path: Path) -> None:
    styles = Styles([], [])
    close = [
        Spot(f"a-rather-long-name-of-row-{i}", styles("sfw", ""), 0.1 * (i % 5), 0.01 * i)
        for i in range(150)
    ]
    ax = drawn(tmp_path, close)
    renderer = ax.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in ax.texts]
    assert 3 < len(boxes) < 150
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len(legend_of(close)[1]) == 150  # who has no name in the plot has one in the legend


def test_a_row_has_one_look_in_all_panels_and_one_line_in_the_curves(tmp_path: Path) -> None:
    rows = candidates(contest.runs(), pd.DataFrame())
    styles = Styles([], [(c.method, c.styled_as) for c in rows])
    write_compare_figure(rows, "top1", styles, tmp_path)
    assert (tmp_path / "compare.svg").read_text().count("<!-- imp-p90 -->") >= 2
    metric = "validation/top1"
    curves = pd.DataFrame(
        [
            (f"net-{m}-s{s}", e, e, metric, 1.0 * s)
            for m in "ab"
            for s in range(3)
            for e in range(4)
        ],
        columns=["training", "epoch", "step", "metric", "value"],
    )
    methods = dict.fromkeys(curves["training"], "sfw")
    write_figures(pd.DataFrame(), pd.DataFrame(), curves, methods, styles, tmp_path)
    text = (tmp_path / "curves.svg").read_text()
    assert text.count("<!-- net-a -->") == text.count("<!-- net-b -->") == 1
    assert "net-a-s0" not in text


def test_markers_are_ten() -> None:
    assert len(set(MARKERS)) == 10


@pytest.mark.parametrize("name", ["compare", "curves"])
def test_nothing_is_drawn_of_nothing(tmp_path: Path, name: str) -> None:
    empty = pd.DataFrame(columns=["training", "epoch", "step", "metric", "value"])
    write_compare_figure([], "top1", Styles([], []), tmp_path)
    write_figures(pd.DataFrame(), pd.DataFrame(), empty, {}, Styles([], []), tmp_path)
    assert not (tmp_path / f"{name}.svg").exists()
