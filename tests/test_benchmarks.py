"""The benchmarks compare like with like: re-stated loops step as ours do, clocks add up."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.coverage import _beside, _peer_summary
from benchmarks.loops import Setting, run_fit
from benchmarks.plain_loops import FrankWolfeLoop, HalfSpaceLoop
from benchmarks.step_profile import PARTS, Clock, Spans, profile
from benchmarks.zoo.peer import PeerRow
from pipeline.data.splits import TensorSplit
from pipeline.registry import method_spec
from pipeline.training.recipe import Recipe

SMALL = Setting("small", "vgg_small", 8, recipe={"optimizer": {"momentum": 0.0}})


@pytest.fixture(scope="module")
def split() -> TensorSplit:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=g)
    return TensorSplit(images, torch.randint(0, 10, (48,), generator=g))


def stepped(name: str, config: dict[str, Any], lr: float) -> Iterator[nn.Module]:
    """Our network after each of three steps along made-up gradients."""
    model, units = SMALL.build()
    spec = method_spec(name)
    method = spec.build(spec.config(**config))
    recipe = Recipe(epochs=1, optimizer={"lr": lr, "momentum": 0.0, "weight_decay": 0.0})
    method.prepare(model, units)
    optimizer = method.optimizer(model, method.phases(recipe)[0], recipe)
    for step in range(3):
        gradients(model, step)
        optimizer.step()
        yield model


def gradients(model: nn.Module, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)


@pytest.mark.parametrize("name", ["hspg", "sfw"])
def test_a_restated_loop_takes_the_steps_of_our_method(name: str, split: TensorSplit) -> None:
    if name == "hspg":
        loop: Any = HalfSpaceLoop(SMALL, split, lr=2.0, penalty=0.3)
        ours = stepped(name, {"penalty": 0.3, "warmup_epochs": 0}, 2.0)
    else:
        loop = FrankWolfeLoop(SMALL, split, StringIO())
        ours = stepped(name, {}, 1.0)
    for step, model in enumerate(ours):
        gradients(loop.model, step)
        loop.optimizer_step()
        for mine, theirs in zip(model.parameters(), loop.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    zero = sum(int((p == 0).sum()) for p in loop.model.parameters())
    assert name == "sfw" or zero > 100  # whole channels were projected


def test_both_sides_can_be_timed(split: TensorSplit) -> None:
    for cost in (run_fit(SMALL, split, 2), HalfSpaceLoop(SMALL, split).run(2)):
        assert cost.step > 0
        assert cost.epoch(10) == cost.once + 10 * cost.step


def test_inner_spans_are_taken_from_outer_ones() -> None:
    spans = Spans(Clock(torch.device("cpu")))
    spans.on = True
    inner = spans.around("inner", lambda: sum(range(200_000)))
    spans.around("outer", inner)()
    found = spans.seconds()
    assert 0 <= found["outer"] < found["inner"]


def test_the_parts_of_a_step_make_the_step(split: TensorSplit) -> None:
    found, waits = profile(SMALL, split, steps=2)
    assert sum(found[part] for part in PARTS) == pytest.approx(found["step"])
    assert min(found[part] for part in ("data", "forward", "backward", "optimizer")) > 0
    assert found["forward"] + found["backward"] > 0.5 * found["step"]
    assert not waits


def test_memory_stands_beside_time_where_it_was_measured() -> None:
    before = PeerRow("a/b", True, 0.0, 1.0, True, 2.0, 1.0)
    row = PeerRow("a/c", True, 0.0, 1.0, True, 2.0, 1.0, "", 40_000, 10_000)
    assert _beside(before) == "0e+00, 1.00 | 0.50 | not run"
    assert _beside(row) == "0e+00, 1.00 | 0.50 | 0.25"
    assert next(_peer_summary([before, row])).strip().endswith("median memory 0.25 of 1.")
