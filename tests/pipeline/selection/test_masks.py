"""Masks of an exact size: ties in order, dead units left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.selection.masks import GradientMask, count_of, drop_smallest

VALUES = st.lists(
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0]), st.floats(allow_nan=False, width=32)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(values=VALUES, data=st.data())
def test_drop_smallest_drops_exactly_the_smallest(values: list[float], data: st.DataObject) -> None:
    tensor = torch.tensor(values)
    dead = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    alive = ~torch.tensor(dead)
    count = data.draw(st.integers(0, int(alive.sum())))
    cut = len(values) // 2
    scores = {"a": tensor[:cut], "b": tensor[cut:]}
    keep = drop_smallest(scores, {"a": alive[:cut], "b": alive[cut:]}, count)
    kept = torch.cat([keep["a"], keep["b"]])
    order = sorted((v, i) for i, v in enumerate(values) if alive[i])
    assert kept.nonzero().flatten().tolist() == sorted(i for _, i in order[count:])


def test_counts_survive_binary_fractions() -> None:
    assert count_of(0.29, 100) == 29
    assert count_of(0.7, 1360) == 952
    assert count_of(0.2, 140_000_004) == 28_000_000


def test_bad_scores_are_named() -> None:
    scores = {"a": torch.tensor([1.0, float("nan")])}
    alive = {"a": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(ValueError, match="not a number in a"):
        drop_smallest(scores, alive, 1)
    with pytest.raises(ValueError, match="only 2 are left"):
        drop_smallest({"a": torch.ones(2)}, alive, 3)


def test_memory_format_does_not_matter() -> None:
    scores = torch.tensor([0.0, 1.0, 0.0, 2.0] * 6).view(2, 3, 2, 2)
    alive = torch.ones_like(scores, dtype=torch.bool)
    plain = drop_smallest({"a": scores}, {"a": alive}, 7)["a"]
    last = torch.channels_last
    other = drop_smallest(
        {"a": scores.to(memory_format=last)}, {"a": alive.to(memory_format=last)}, 7
    )["a"]
    assert torch.equal(plain, other)


def test_gradients_of_removed_weights_are_zeroed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Linear(2, 2))
    model.to(memory_format=torch.channels_last)
    parameters = dict(model.named_parameters())
    keep = {
        n: torch.rand(p.shape) > 0.5 for n, p in parameters.items() if n in ("0.weight", "2.weight")
    }
    for name in ("0.weight", "1.weight"):
        parameters[name].grad = torch.ones_like(parameters[name])
    GradientMask(parameters, keep).apply()
    assert torch.equal(parameters["0.weight"].grad, keep["0.weight"].float())
    assert parameters["1.weight"].grad.all()
    assert parameters["2.weight"].grad is None
