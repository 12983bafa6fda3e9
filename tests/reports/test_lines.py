"""Barriers as a table over seeds, paths as a figure, the matrix of mask distances."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from methods.early_bird import distances_back, pairwise_distances
from pipeline.study.records.record import sha, write_record
from pipeline.study.tracking.connect_view import connect_view
from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.read_back import curves_for, lines_for, runs_for
from pipeline.study.tracking.study_runs import Entry, Study
from reports.build.connect import connect_table, write_lines
from reports.build.mask_distance import distance_matrix, write_mask_distances
from reports.build.render import markdown
from tests.pipeline.study.records.test_connect_record import connect_record
from tests.reports.samples import frame, sqlite_uri, train_record


def views(top1: tuple[float, ...] = (98.0, 80.0, 96.0)) -> list:
    first, second = train_record("dense", 0), train_record("dense", 1)
    return [
        connect_view(connect_record(0, sha(first)), first, first),
        connect_view(connect_record(1, sha(second), top1), second, second),
    ]


def test_seeds_become_one_row(tmp_path: Path) -> None:
    absent = Entry("gone", "x", tmp_path / "none.json", (), {"model": "a/b", "method": "dense"})
    table = connect_table(frame(views()), [absent])
    row = table.rows.iloc[0]
    assert (row["seeds"], row["barrier_top1"], row["one_top1"]) == (2, (37 + 17) / 2, 98.0)
    assert row["barrier_top1_std"] == pytest.approx(20 / 2**0.5)
    assert row["barrier_top1_recalibrated"] == 27.0
    assert "not run" in markdown(table)


def test_published_and_drawn_from_mlflow_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "db"))
    training = train_record("dense", 0)
    record = connect_record(0, sha(training))
    files = tmp_path / "train.json", tmp_path / "connect.json"
    write_record(files[0], training)
    told = write_record(files[1], record)
    name = training.training
    study = Study("s", [Entry(name, name, files[0])], pairs=[Entry(record.pair, name, files[1])])
    ids = publish(study)
    assert publish(study) == ids
    run = runs_for("s", [told]).iloc[0]
    assert run["metrics.barrier/top1"] == 37.0
    assert run["tags.parent_sha"] == sha(training)
    lines = lines_for("s", [told])
    own = lines[lines["metric"] == "top1"]
    assert own["alpha"].tolist() == [0.0, 0.5, 1.0]
    assert own["value"].tolist() == record.line("top1", recalibrated=False)
    write_lines(lines, tmp_path / "plots")
    assert (tmp_path / "plots/connect.svg").is_file()
    assert curves_for("s", [sha(training)])["metric"].nunique() == 2


def test_an_end_must_be_the_training_present(tmp_path: Path) -> None:
    training = train_record("dense", 0)
    write_record(tmp_path / "train.json", training)
    write_record(tmp_path / "connect.json", connect_record(0, "b" * 64))
    name = training.training
    entry = Entry("pair-s0", name, tmp_path / "connect.json")
    with pytest.raises(ValueError, match="made from another record of training"):
        _ = Study("s", [Entry(name, name, tmp_path / "train.json")], pairs=[entry]).views


def logged(masks: torch.Tensor, epochs: list[int], ratio: str = "0.5") -> pd.DataFrame:
    rows = [
        ("eb-s0", epoch, 10 * epoch, f"mask_distance/{ratio}/{lag}", value)
        for i, epoch in enumerate(epochs)
        for lag, value in enumerate(distances_back(masks[: i + 1]))
    ]
    rows.append(("eb-s0", 0, 0, "lr", 0.1))
    return pd.DataFrame(rows, columns=["training", "epoch", "step", "metric", "value"])


def test_what_was_logged_is_the_pairwise_matrix(tmp_path: Path) -> None:
    masks = torch.rand(6, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    epochs = [0, 1, 2, 4, 5, 9]  # a tie drew none at 3, 6, 7, 8
    curves = logged(masks, epochs)
    write_mask_distances(curves, tmp_path)
    found = pd.read_csv(tmp_path / "mask_distance-eb-s0-0_5.csv", index_col="epoch")
    assert found.index.tolist() == [e + 1 for e in epochs] == [int(c) for c in found.columns]
    assert found.to_numpy() == pytest.approx(pairwise_distances(masks).numpy())
    assert (tmp_path / "mask_distance-eb-s0-0_5.png").is_file()


def test_no_masks_no_figure(tmp_path: Path) -> None:
    curves = logged(torch.ones(1, 3, dtype=torch.bool), [0])
    write_mask_distances(curves[curves["metric"] == "lr"], tmp_path)
    assert not list(tmp_path.iterdir())
    lone = curves[curves["metric"] != "lr"].assign(lag=0)
    assert distance_matrix(lone).shape == (1, 1)
