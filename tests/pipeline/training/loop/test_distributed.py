"""Two processes train like one, report disagreement, and resume when killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batches import Part
from pipeline.files import load_tree, read_json
from pipeline.training.loop.distributed import ALONE
from tests.pipeline.training.team_jobs import (
    SIZES,
    VARIANTS,
    batches,
    train_plain,
    train_variant,
)
from tests.team import together


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    path = tmp_path_factory.mktemp("team")
    together("tests.pipeline.training.team_jobs:everything", path)
    return path


@given(st.integers(1, 300), st.integers(1, 9))
def test_parts_make_up_the_batch(count: int, ranks: int) -> None:
    spans = [Part(rank, ranks).of(count) for rank in range(ranks)]
    assert spans[0][0] == 0
    assert spans[-1][1] == count
    assert all(end == first for (_, end), (first, _) in zip(spans, spans[1:], strict=False))
    sizes = [end - first for first, end in spans if first < end]
    assert max(sizes) - min(sizes) <= 1
    assert count == 1 or min(sizes) >= 2


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_what_the_processes_see_is_what_one_sees(n: int, ranks: int) -> None:
    parts = [list(batches(n).epoch(1, 1, Part(rank, ranks))) for rank in range(ranks)]
    whole = list(batches(n).epoch(1, 1))
    assert all(len(part) == len(whole) for part in parts)
    for step, (x, y) in enumerate(whole):
        shown = [part[step] for part in parts if len(part[step][1])]
        assert torch.equal(torch.cat([a for a, _ in shown]), x)
        assert torch.equal(torch.cat([b for _, b in shown]), y)


def numbers(path: Path) -> list[dict[str, Any]]:
    return [row["values"] for row in read_json(path)]


@pytest.mark.parametrize("method", ["base", "pulled", *VARIANTS])
@pytest.mark.parametrize("n", SIZES)
def test_two_processes_equal_one(folder: Path, tmp_path: Path, method: str, n: int) -> None:
    """This includes mixup, whose partners come from the whole batch, and the weight average."""
    (train_variant if method in VARIANTS else train_plain)(ALONE, tmp_path, method, n)
    alone = tmp_path / f"{method}-{n}-of-1-0"
    wanted = load_tree(alone.with_suffix(".weights"))
    curve = numbers(alone.with_suffix(".curve"))
    both = [folder / f"{method}-{n}-of-2-{rank}" for rank in range(2)]
    first, second = (load_tree(p.with_suffix(".weights")) for p in both)
    for name, value in wanted.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-8)
    for path in both:
        for row, expected in zip(numbers(path.with_suffix(".curve")), curve, strict=True):
            assert row == pytest.approx(expected, rel=1e-6)
    assert curve[-1]["examples"] == 3 * n
    if method == "averaged":
        found, expected = (average_of(p / f"{method}-{n}") for p in (folder, tmp_path))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def average_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_tree(folder / "snapshots/ema.safetensors")["model"]


def test_two_processes_resume_with_the_same_bits(folder: Path) -> None:
    """Killed in epochs 0, 0 and 1, with BatchNorm, dropout, blends, an average of the weights and
    checkpoints inside the epoch."""
    wanted = load_tree(folder / "undisturbed-0.weights")
    one, other = (average_of(folder / name) for name in ("undisturbed", "killed"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert not torch.equal(one["1.running_mean"], wanted["1.running_mean"])
    for rank in range(2):
        for name in ("undisturbed", "killed"):
            found = load_tree(folder / f"{name}-{rank}.weights")
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[k], wanted[k]) for k in wanted)
        assert read_json(folder / f"killed-{rank}.curve") == read_json(
            folder / "undisturbed-0.curve"
        )


def test_only_the_first_process_writes(folder: Path) -> None:
    assert (folder / "undisturbed" / "last.safetensors").is_file()
    assert sorted(p.stem for p in (folder / "undisturbed/snapshots").iterdir()) == [
        "ema",
        "init",
        "rewind",
    ]
