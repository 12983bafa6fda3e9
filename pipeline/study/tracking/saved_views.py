"""Saved views of a study's runs in MLflow, and the text above the runs.

A saved view is a tag of the experiment that MLflow's page reads (3.17: the menu "Views"): filter,
order, grouping, columns and charts. The page writes the same kind of tag when a user saves a view.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import NAMESPACE_URL, uuid5

_TAG = "mlflow.sharedViewState."
_ROWS = "tags.stage = 'evaluate'"
_COLUMNS = {  # and their widths in pixels; MLflow's own cut most names
    "metrics.`final/top1`": 120,
    "metrics.`dense/top1`": 110,
    "metrics.`percent/macs_kept`": 150,
    "metrics.`percent/macs_nonzero`": 170,
    "metrics.`percent/params_nonzero`": 180,
    "metrics.`cost/total_gmacs`": 150,
    "metrics.`pruned/top1`": 110,
    "params.`method`": 110,
    "params.`model`": 150,
}
_FIRST = {"attributes.`Run Name`": 270, "attributes.`Created`": 110}
_Chart = Mapping[str, Any]


def _bar(metric: str, title: str) -> _Chart:
    return {"type": "BAR", "metricKey": metric, "displayName": title}


def _line(metric: str, title: str) -> _Chart:
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": title,
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "lineSmoothness": 0,  # MLflow smooths curves by default
        "useGlobalLineSmoothing": False,
    }


def _line_over(x: str, metrics: Sequence[str], title: str) -> _Chart:
    """A chart with a line per run, over a metric instead of the step."""
    chart = {**_line(metrics[0], title), "selectedMetricKeys": list(metrics)}
    return {**chart, "xAxisKey": "metric", "selectedXAxisMetricKey": x}


def _scatter(x: str, y: str, title: str) -> _Chart:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", "displayName": title, **axes}


def _parallel(params: Sequence[str], metrics: Sequence[str], title: str) -> _Chart:
    chosen = {"selectedParams": list(params), "selectedMetrics": list(metrics)}
    return {"type": "PARALLEL", "displayName": title, "showAllRuns": False, **chosen}


@dataclass(frozen=True)
class Section:
    """Charts under one heading, `columns` in a row."""

    name: str
    columns: int
    charts: tuple[_Chart, ...]


@dataclass(frozen=True)
class View:
    """One saved view.

    Attributes:
        name: the question it answers; also the text of its link above the runs.
        where: MLflow filter of the runs.
        sections: the first charts; MLflow adds its own below.
        grouped: show one line per tag `row`, the mean over its runs, that is, over seeds.
        order: metric to sort by, best first.
    """

    key: str
    name: str
    where: str
    sections: tuple[Section, ...]
    grouped: bool = True
    order: str = "final/top1"

    def tag(self, rows: Iterable[str]) -> tuple[str, str]:
        """Name and value of the experiment tag. MLflow expands groups by default; `rows` are the
        values of the tag `row` to collapse."""
        closed = {f"tag.row.{row}": False for row in sorted(rows)} if self.grouped else {}
        state = json.dumps(self._state() | {"groupsExpanded": closed})
        packed = base64.b64encode(zlib.compress(state.encode(), 9)).decode()
        value = {"name": self.name, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
        return f"{_TAG}{self.key}", json.dumps(value)

    def _state(self) -> dict[str, Any]:
        charts: list[dict[str, Any]] = []
        sections: list[dict[str, Any]] = []
        for section in self.sections:
            at = str(uuid5(NAMESPACE_URL, f"{self.key}/{section.name}"))
            fixed = {"deleted": False, "isGenerated": False}
            heading: dict[str, Any] = {
                "uuid": at,
                "name": section.name,
                "display": True,
                "isReordered": True,
            }
            sections.append(heading | fixed | {"columns": section.columns, "cardHeight": 420})
            for chart in section.charts:
                own: dict[str, Any] = {
                    "uuid": str(uuid5(NAMESPACE_URL, f"{at}/{chart['displayName']}"))
                }
                own |= {"metricSectionId": at, "runsCountToCompare": 100}
                charts.append(own | fixed | dict(chart))
        by_row = [{"mode": "tag", "groupByData": "row"}]
        grouped = {"aggregateFunction": "average", "groupByKeys": by_row}
        # MLflow averages the metrics of a group and shows none of its params
        columns = [c for c in _COLUMNS if c.startswith("metrics") or not self.grouped]
        return {
            "searchFilter": self.where,
            "orderByKey": f"metrics.`{self.order}`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "columnOrder": [*_FIRST, *columns],
            "columnWidths": _FIRST | _COLUMNS,
            "runsHiddenMode": "SHOWALL",
            "compareRunCharts": charts,
            "compareRunSections": sections,
            "isAccordionReordered": True,
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "groupBy": grouped if self.grouped else None,
        }


_SCORE = "Score (%), mean over seeds"
_ANSWER = Section(
    "Score, and what is left",
    1,
    (
        _bar("final/top1", _SCORE),
        _scatter("percent/macs_nonzero", "final/top1", "Score against non-zero MACs (%)"),
    ),
)
_COST = Section(
    "Cost",
    1,
    (
        _scatter("cost/total_gmacs", "final/top1", "Score against MACs spent on training"),
        _scatter("percent/params_nonzero", "final/top1", "Score against non-zero parameters (%)"),
    ),
)
_AXES = ("cost/total_gmacs", "percent/params_nonzero", "percent/macs_kept", "final/top1")
_PARALLEL = Section("Parallel coordinates", 1, (_parallel(("method",), _AXES, "Every run"),))
_CURVES = Section(
    "Curves",
    1,
    (
        _line("curve/validation/top1", "Validation score (%)"),
        _line("curve/train/loss", "Training loss"),
    ),
)
VIEWS = (
    View(
        "espalier-at-90",
        "Which method at 90%?",
        f"{_ROWS} AND metrics.`sparsity/weight` > 0.88",
        (_ANSWER, _COST),
    ),
    View("espalier-rows", "Every row", _ROWS, (_ANSWER, _COST)),
    View("espalier-runs", "Parallel coordinates", _ROWS, (_PARALLEL,), grouped=False),
    View(
        "espalier-sweep",
        "One-shot sweep",
        "tags.stage = 'sweep'",
        (
            Section(
                "Score of one-shot pruning",
                1,
                (_line_over("oneshot/sparsity", ("oneshot/top1",), "Score (%) over sparsity"),),
            ),
        ),
        grouped=False,
        order="dense/top1",
    ),
    View(
        "espalier-curves",
        "Training curves",
        "tags.stage = 'train'",
        (_CURVES,),
        order="curve/validation/top1",
    ),
)


def view_tags(rows: Iterable[str] = (), seeds: bool = True) -> dict[str, str]:
    """The experiment tags of all views; `rows` are all values of the tag `row`.

    Without repeated `seeds` nothing is grouped: MLflow cuts the name of a group after a word, and
    each would hold one run.
    """
    known = tuple(rows)
    return dict(replace(view, grouped=view.grouped and seeds).tag(known) for view in VIEWS)


def views_guide(experiment: str) -> str:
    """The description of an experiment: a link to the charts of every view. It is one line, because
    MLflow shows only one without a click."""
    address = f"#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    links = [f"[{view.name}]({address}&viewStateShareKey={view.key})" for view in VIEWS]
    return " · ".join(links)
