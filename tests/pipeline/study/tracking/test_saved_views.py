"""The saved views: their tags, who updates them, and how MLflow's page shows them."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.record_views import evaluate_view, sweep_view, train_view
from pipeline.study.tracking.saved_views import VIEWS, view_tags, views_guide
from pipeline.study.tracking.store import Store
from pipeline.study.tracking.study_runs import Study
from tests.reports.samples import (
    eval_record,
    sqlite_uri,
    sweep_record,
    train_record,
    write_study,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ANSWER = "espalier-at-90"


def state(tags: dict[str, str], key: str) -> dict[str, Any]:
    """As the page unpacks it."""
    packed = json.loads(tags[f"mlflow.sharedViewState.{key}"])["state"]
    kind, _, data = packed.partition(";")
    assert kind == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(data)))


def named(view: Any) -> set[str]:
    """Every metric a view asks for."""
    charts = [c for s in view.sections for c in s.charts]
    axes = {c[a]["key"] for c in charts for a in ("xaxis", "yaxis") if a in c}
    lists = ("selectedMetrics", "selectedMetricKeys")
    rest = {m for c in charts for name in lists for m in c.get(name, ())}
    rest |= {c["selectedXAxisMetricKey"] for c in charts if "selectedXAxisMetricKey" in c}
    return axes | rest | {c["metricKey"] for c in charts if "metricKey" in c} | {view.order}


def test_views_ask_for_metrics_that_runs_have() -> None:
    training = train_record("hspg")
    has = set(evaluate_view(eval_record(training), training).summary())
    has |= set(train_view(training).summary())
    has |= set(sweep_view(sweep_record(training), training).summary())
    assert set().union(*(named(v) for v in VIEWS)) <= has
    columns = {c for c in state(view_tags(), ANSWER)["selectedColumns"] if "metrics" in c}
    assert {c.removeprefix("metrics.`").rstrip("`") for c in columns} <= has


def test_a_row_is_the_same_for_all_seeds_and_begins_with_the_method() -> None:
    rows = set()
    for seed in (0, 1):
        training = train_record("hspg", seed)
        rows.add(evaluate_view(eval_record(training), training).tags["row"])
    assert rows == {"hspg-p50 | resnet8-hspg"}
    assert train_view(train_record("hspg", 1)).tags["row"] == "hspg | resnet8-hspg"


def test_groups_are_closed_and_charts_belong_to_a_section() -> None:
    view = state(view_tags(["hspg | a", "imp | b"]), ANSWER)
    assert view["groupsExpanded"] == {"tag.row.hspg | a": False, "tag.row.imp | b": False}
    sections = {s["uuid"] for s in view["compareRunSections"]}
    assert {c["metricSectionId"] for c in view["compareRunCharts"]} == sections
    assert len({c["uuid"] for c in view["compareRunCharts"]}) == len(view["compareRunCharts"])


def test_the_same_tags_every_time_and_short_enough_for_mlflow() -> None:
    rows = [f"method-p{n} | some-network-of-a-study-{n}" for n in range(60)]
    assert view_tags(rows) == view_tags(reversed(rows))
    assert max(map(len, view_tags(rows).values())) < 5000  # MLflow's limit


def test_no_curve_is_smoothed() -> None:
    lines = [c for view in VIEWS for s in view.sections for c in s.charts if c["type"] == "LINE"]
    assert lines
    assert all(c["lineSmoothness"] == 0 and not c["useGlobalLineSmoothing"] for c in lines)


def test_a_sweep_is_a_curve() -> None:
    training = train_record("hspg")
    view = sweep_view(sweep_record(training), training)
    asked = {p.step: p.value for p in view.points if p.name == "oneshot/sparsity"}
    scores = {p.step: p.value for p in view.points if p.name == "oneshot/top1"}
    assert asked == {step: step / 1000 for step in scores}
    assert len(scores) > 1


def test_the_guide_links_every_view() -> None:
    text = views_guide("7")
    assert "\n" not in text  # MLflow shows one line of it without a click
    assert all(f"viewStateShareKey={v.key})" in text and f"[{v.name}]" in text for v in VIEWS)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path))
    made = write_study(tmp_path)
    publish(made)
    return made


def test_publishing_keeps_our_views_and_leaves_others_alone(study: Study) -> None:
    store = Store(study.name)
    client, experiment = store._client, store._id
    theirs = {"mlflow.sharedViewState.1795": "{}", "mlflow.note.content": "my words"}
    for key, value in {**theirs, f"mlflow.sharedViewState.{ANSWER}": "old"}.items():
        client.set_experiment_tag(experiment, key, value)
    publish(study)
    tags = client.get_experiment(experiment).tags
    assert theirs.items() <= tags.items()
    closed = state(tags, ANSWER)["groupsExpanded"]
    assert {run.data.tags["row"] for run in store.runs("tags.stage = 'evaluate'")} <= {
        key.removeprefix("tag.row.") for key in closed
    }


def test_groups_only_where_a_row_has_several_seeds() -> None:
    rows = ["hspg | a", "imp | b"]
    one, several = (state(view_tags(rows, seeds), ANSWER) for seeds in (False, True))
    assert one["groupBy"] is None
    assert "params.`method`" in one["selectedColumns"]
    assert several["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "row"}]
    assert all(c.startswith("metrics") for c in several["selectedColumns"])


def test_publishing_one_seed_groups_nothing(study: Study) -> None:
    store = Store(study.name)
    client, experiment = store._client, store._id
    assert state(client.get_experiment(experiment).tags, ANSWER)["groupBy"]
    publish(replace(study, trainings=study.trainings[:2], prunings=study.prunings[:2]))
    assert state(client.get_experiment(experiment).tags, ANSWER)["groupBy"] is None
