"""Properties of the feasible sets; recorded cases are in tests/methods/sfw/test_sfw_parity.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.sfw.constraints import (
    ConvexSet,
    KSparsePolytope,
    LpBall,
    Unconstrained,
    from_plain,
    make_feasible,
    polytope_k,
)

N = 12
SETS: dict[str, ConvexSet] = {
    "k1": KSparsePolytope(1, 0.7),
    "k3": KSparsePolytope(3, 0.7),
    "k12": KSparsePolytope(12, 0.7),
    "l1": LpBall(1.0, N, 0.7),
    "l1.5": LpBall(1.5, N, 0.7),
    "l2": LpBall(2.0, N, 0.7),
    "l5": LpBall(5.0, N, 0.7),
    "linf": LpBall(math.inf, N, 0.7),
}
PROJECTED = [name for name in SETS if name not in ("l1.5", "l5")]
numbers = st.floats(-3.0, 3.0, allow_nan=False, width=32) | st.sampled_from([0.0, 1.0, -1.0, 2.5])
vectors = st.lists(numbers, min_size=N, max_size=N).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)


def _feasible_points(feasible: ConvexSet, count: int, seed: int) -> Tensor:
    """Random points of the set: scaled to the boundary, then inwards by a random factor."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, N, generator=generator, dtype=torch.float64)
    points *= torch.rand(count, N, generator=generator, dtype=torch.float64) < 0.6
    if isinstance(feasible, KSparsePolytope):
        gauge = torch.maximum(
            points.abs().sum(1) / (feasible.radius * feasible.k),
            points.abs().amax(1) / feasible.radius,
        )
    else:
        assert isinstance(feasible, LpBall)
        gauge = torch.linalg.vector_norm(points, feasible.p, dim=1) / feasible.radius
    inwards = torch.rand(count, generator=generator, dtype=torch.float64).clamp_min(0.5)
    return points * (inwards / gauge.clamp_min(1e-9)).unsqueeze(1)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=25, deadline=None)
@given(direction=vectors, seed=st.integers(0, 2**16))
def test_lmo_beats_a_thousand_feasible_points(name: str, direction: Tensor, seed: int) -> None:
    feasible = SETS[name]
    vertex = feasible.lmo(direction)
    assert feasible.contains(vertex, 1e-12)
    points = _feasible_points(feasible, 1000, seed)
    assert all(feasible.contains(p, 1e-9) for p in points[:20])
    if direction.norm() > 1e-10:
        assert torch.dot(vertex, direction) <= (points @ direction).min() + 1e-12


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=60, deadline=None)
@given(x=vectors)
def test_shift_inside_is_feasible_keeps_direction_and_feasible_points(name: str, x: Tensor) -> None:
    feasible = SETS[name]
    shifted = feasible.shift_inside(x)
    assert feasible.contains(shifted, 1e-12)
    if feasible.contains(x, 0.0):
        assert torch.equal(shifted, x)
    else:
        ratio = shifted.norm() / x.norm()
        assert ratio < 1.0
        torch.testing.assert_close(shifted, x * ratio, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", PROJECTED)
@settings(max_examples=60, deadline=None)
@given(x=vectors)
def test_projection_is_the_nearest_point(name: str, x: Tensor) -> None:
    """p is nearest exactly when no vertex v has <x - p, v - p> > 0; the LMO gives the worst v."""
    feasible = SETS[name]
    p = feasible.euclidean_projection(x)
    assert feasible.contains(p, 1e-12)
    worst = feasible.lmo(p - x)
    assert torch.dot(x - p, worst - p) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_of_a_large_tensor(dtype: torch.dtype) -> None:
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    feasible = KSparsePolytope(100, 0.3)
    p = feasible.euclidean_projection(x)
    assert p.dtype == dtype
    assert feasible.contains(p, 1e-6)
    assert p.abs().sum() == pytest.approx(30.0, rel=1e-6)


def test_no_projection_onto_other_balls() -> None:
    with pytest.raises(ValueError, match="L5 ball"):
        SETS["l5"].euclidean_projection(torch.ones(N))


@pytest.mark.parametrize("name", SETS)
def test_diameter_is_attained_and_never_exceeded(name: str) -> None:
    feasible = SETS[name]
    points = _feasible_points(feasible, 200, 3)
    assert torch.cdist(points, points).max() <= feasible.diameter + 1e-12
    ends = [torch.ones(N, dtype=torch.float64), torch.eye(N, dtype=torch.float64)[0]]
    spans = [(feasible.lmo(d) - feasible.lmo(-d)).norm().item() for d in ends]
    assert max(spans) == pytest.approx(feasible.diameter, rel=1e-9)


@pytest.mark.parametrize("feasible", [*SETS.values(), Unconstrained()])
def test_sets_travel_as_plain_numbers(feasible: ConvexSet) -> None:
    plain = feasible.plain()
    assert all(isinstance(v, int | float | str) for v in plain.values())
    assert from_plain(plain) == feasible


def test_the_whole_space() -> None:
    space, x = Unconstrained(), torch.randn(4)
    assert space.shift_inside(x) is x
    assert space.euclidean_projection(x) is x
    assert space.contains(x)
    assert space.diameter == math.inf
    with pytest.raises(ValueError, match="no linear minimum"):
        space.lmo(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KSparsePolytope(0, 1.0), "k = 0"),
        (lambda: KSparsePolytope(2, -1.0), "radius = -1"),
        (lambda: LpBall(0.5, 3, 1.0), "p = 0.5"),
        (lambda: LpBall(2.0, 3, 0.0), "radius = 0"),
        (lambda: from_plain({"kind": "cone"}), "unknown constraint kind 'cone'"),
    ],
)
def test_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_k_rule_by_hand() -> None:
    assert polytope_k(1728, 10, 0.05) == 86
    assert polytope_k(64, 10, 0.05) == 10
    assert polytope_k(10, 10, 0.05) == 10
    assert polytope_k(4, 10, None) == 4
    assert polytope_k(1000, None, 0.01) == 10


def test_make_feasible_changes_only_the_infeasible() -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.bias.fill_(5.0)
    make_feasible(model, {"weight": LpBall(2.0, 12, 10.0), "bias": LpBall(math.inf, 3, 1.0)})
    assert torch.equal(model.weight, before)
    assert torch.equal(model.bias, torch.ones(3))
