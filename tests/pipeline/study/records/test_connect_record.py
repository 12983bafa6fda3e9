"""The record of a linear path: the barrier by hand, canonical bytes, refusal of broken paths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.study.records.connect import ConnectRecord, PathEnd, PathPoint
from pipeline.study.records.record import from_json, to_json

ALPHAS = (0.0, 0.5, 1.0)


def connect_record(
    seed: int = 0, training_sha: str = "a" * 64, top1: tuple[float, ...] = (98.0, 60.0, 96.0)
) -> ConnectRecord:
    points = [
        PathPoint(alpha, recalibrated, {"loss": loss, "top1": score + recalibrated})
        for recalibrated in (False, True)
        for alpha, loss, score in zip(ALPHAS, (0.1, 1.2, 0.3), top1, strict=True)
    ]
    ends = [PathEnd(f"resnet8-dense-s{seed}", at, training_sha) for at in ("init", "final")]
    return ConnectRecord(
        pair=f"pair-s{seed}",
        one=ends[0],
        other=ends[1],
        model="resnet_cifar/resnet8",
        method="dense",
        data="digits",
        seed=seed,
        distance=3.5,
        points=tuple(points),
    )


def test_barrier_is_the_worst_against_the_mean_of_the_ends() -> None:
    record = connect_record()
    assert record.barrier("top1", False) == 97.0 - 60.0
    assert record.barrier("loss", True) == pytest.approx(1.2 - 0.2)
    assert connect_record(top1=(98.0, 99.0, 96.0)).barrier("top1", False) == 1.0  # the worse end


def test_reads_back() -> None:
    text = to_json(connect_record())
    assert from_json(ConnectRecord, text) == connect_record()


@pytest.mark.parametrize("keep", [slice(1, None), slice(0, -1), slice(None, None, -1)])
def test_a_path_goes_from_one_end_to_the_other(keep: slice) -> None:
    record = connect_record()
    with pytest.raises(ValueError, match="alpha does not increase from 0 to 1"):
        replace(record, points=record.points[keep])
