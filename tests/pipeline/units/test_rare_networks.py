"""Networks of rare topologies, drawn at random: the two laws, and prices that are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from pipeline.measure.count import MacsModel, count
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan
from tests.pipeline.units.nets.rare import BLOCKS, SIZE, Plan, plans

EXAMPLE = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans())
@example(plan=Plan(6, (("channels_last", (3,)), ("channels_last", (2,)))))
@example(plan=Plan(4, (("there_and_back", (3,)), ("linear_units", (4,)))))
@example(plan=Plan(8, (("shuffle_split", (4, 3, True)), ("transposed", (2, 3, 2)))))
def test_laws_and_prices(plan: Plan) -> None:
    units = trace_units(plan.build(), EXAMPLE)
    generator = torch.Generator().manual_seed(0)
    dead = {
        g.name: torch.zeros(g.size, dtype=torch.bool)
        for g in units.prunable
        if torch.rand(1, generator=generator) < 0.4
    }
    costs = MacsModel(plan.build(), EXAMPLE, units)
    for chosen in (
        random_plan(units, 0.5, generator),
        random_plan(units, 0.9, generator),
        PruningPlan(Granularity.STRUCTURED, dead),
    ):
        shrunk = assert_laws(plan.build, EXAMPLE, units, chosen)
        counted = count(shrunk.float(), EXAMPLE)
        assert (costs.params(chosen), costs.macs(chosen)) == (counted.params, counted.macs)


@pytest.mark.parametrize(
    ("block", "numbers", "prunable"),
    [
        ("grouped_concat", (3, 2, 2), 1 + 2 + 2),
        ("nested", ("batch", "none", "prelu"), 6 + 8),
        ("two_scales", ("batch", "bilinear"), 6 + 6),
        ("transposed", (3, 2, 2), 2 + 2),
        ("shuffle_split", (3, 3, True), 4 + 4),
        ("resized", ("area", 0.5), 6 + 6),
        ("pixel_residual", ("batch",), 6),
        ("unshuffled", (3,), 6 + 3),
        ("squeezed", (2,), 6 + 2),
        ("channels_last", (3,), 6 + 3),
        ("multiplied", (2,), 6 + 6),
        ("tied", (), 6),
        ("dense_block", (3,), 6 + 3 + 2),
        ("pyramid", (3,), 6 + 3 + 2),
        ("linear_units", (3,), 6 + 3),
        ("selected", (3,), 6 + 4 + 3),
        ("there_and_back", (3,), 6 + 3),
        ("half_residual", (2,), 3 + 2),
    ],
)
def test_units_are_those_counted_by_hand(
    block: str, numbers: tuple[object, ...], prunable: int
) -> None:
    """Six channels enter. Groups of a convolution lose one channel each, what is added or shared is
    one unit, and so are positions k of two equal halves; unequal parts stay whole."""
    units = trace_units(Plan(6, ((block, numbers),)).build(), EXAMPLE)
    found = "\n".join(map(str, units.groups))
    assert sum(g.size for g in units.prunable) == prunable, found


def test_every_block_is_counted() -> None:
    (marked,) = (m for m in test_units_are_those_counted_by_hand.pytestmark)  # type: ignore[attr-defined]
    assert {row[0] for row in marked.args[1]} | {"recurrent"} == set(BLOCKS)
