"""Stratified draws: exact sizes, disjoint, proportional, the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.files import DataError
from pipeline.data.splits import class_counts, stratified


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_laws_of_a_stratified_draw(data: st.DataObject) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=80)))
    size = data.draw(st.integers(0, len(labels)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    chosen, rest = stratified(labels, size, seed)
    assert len(chosen) == size
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(len(labels)))
    assert chosen.tolist() == sorted(chosen.tolist())
    for total, taken in zip(class_counts(labels, 5), class_counts(labels[chosen], 5), strict=True):
        assert abs(taken - size * total / len(labels)) < 1  # largest remainder
    again, _ = stratified(labels, size, seed)
    assert torch.equal(chosen, again)


def test_the_seed_matters_and_the_stream_is_frozen() -> None:
    labels = torch.arange(100) % 10
    a, b = (stratified(labels, 20, seed)[0] for seed in (0, 1))
    assert not torch.equal(a, b)
    golden = [11, 22, 24, 25, 26, 29, 67, 68, 80, 93]
    assert stratified(labels, 10, 7)[0].tolist() == golden


def test_more_than_there_is() -> None:
    with pytest.raises(DataError, match="cannot take 11 of 10"):
        stratified(torch.zeros(10, dtype=torch.int64), 11, 0)
