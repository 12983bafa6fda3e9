"""A last batch of one example: a network that fails on it is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared
from pipeline.study.execution.running import Assignment, train_network
from pipeline.study.execution.runtime import Workplace
from pipeline.training.loop.last_batch import require_normalisable
from pipeline.training.recipe import Recipe
from tests.conformance.test_models import build, classifiers


def error_of(action: Callable[[], object]) -> str:
    """What a ValueError of the action says, nothing where it works."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("family", "name"), classifiers())
def test_a_network_takes_one_example_or_is_refused(family: str, name: str) -> None:
    model, example, _ = build(family, name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shape = example.shape[1:]
    refusal = error_of(lambda: require_normalisable(model, shape, 101, 50))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fails = "more than 1 value per channel" in error_of(lambda: model.train()(example[:1]))
    assert fails == refusal.startswith("train.batch_size: 50 leaves a last batch of one of 101")
    require_normalisable(model, shape, 102, 50)


def test_mobilenet_is_refused_before_its_first_step(tmp_path) -> None:
    prepare(DataConfig(name="digits", limit=101, size=32, rgb=True), tmp_path / "d")
    model, _, _ = build("mobilenet", "mobilenet_v1")
    nothing: Any = None
    work = Assignment(nothing, model, nothing, nothing, Recipe(epochs=1, batch_size=50), 0)
    place = Workplace(torch.device("cpu"), tmp_path)
    said = r"batch_size: 50 leaves a last batch of one of 101 .*data\.limit: 100"
    with pytest.raises(ValueError, match=said):
        train_network(work, load_prepared(tmp_path / "d"), place, nothing, nothing)
