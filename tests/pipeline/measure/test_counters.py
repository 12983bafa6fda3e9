"""Our column of docs/counting.md: layers and networks whose MACs are worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.counted_layers import Row, networks, rows
from pipeline.measure.count import count


@pytest.mark.parametrize("row", [*rows(), *networks()], ids=lambda row: row.name.strip())
def test_our_number_is_that_by_hand(row: Row) -> None:
    assert count(row.build().eval(), row.example).macs == row.by_hand
