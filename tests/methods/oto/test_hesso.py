"""HESSO against the authors' trace and against its own definition."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods._oto.redundancy import CRITERIA
from methods.hesso import HESSO, HESSOConfig, HESSOMethod
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import Recipe
from pipeline.units.groups import ChannelGroup, Units
from pipeline.units.rows import Rows
from tests.methods.oto.oto_traces import (
    check_weights,
    direction,
    is_plain_tree,
    load,
    no_host_reads,
    no_large_memory,
    parameters,
    piece,
    plain_group,
    set_grads,
    sgd,
    wide_problem,
    zero_rows,
)


def _shared(first: int, size: int) -> tuple:
    where = torch.arange(first, first + size)
    return tuple(piece(f"cat_bn.{t}", where, role="norm") for t in ("gamma", "beta"))


HEADS = torch.arange(8).view(4, 2)  # a unit is a whole head of two rows
C1 = plain_group("c1", 6, ("conv1.w", "bn1.gamma", "bn1.beta"))
CT = (piece("ct.w", torch.arange(5), dim=1), piece("ct.b", torch.arange(5)))
GROUPS = (
    ChannelGroup("c1", 6, (*C1.slices, *_shared(0, 6))),
    ChannelGroup("ct", 5, (*CT, *_shared(6, 5))),
    ChannelGroup("att", 4, tuple(piece(f"{t}.w", HEADS) for t in "qkv")),
)


class _Recorded(HESSO):
    """Stores its last scores."""

    seen: Tensor

    def scores(self, moves: list[Tensor]) -> Tensor:
        self.seen = super().scores(moves)
        return self.seen


def test_trace() -> None:
    trace = load("hesso_ms_sgd")
    hyper, named = trace["hyper"], parameters(trace)
    config = HESSOConfig(
        target_group_sparsity=hyper["target_group_sparsity"],
        periods=hyper["pruning_periods"],
        criteria=hyper["importance_score_criteria"],
        faithful=True,
    )
    asked = sgd(hyper["lr"], hyper["first_momentum"], hyper["weight_decay"])
    optimizer = _Recorded(named.values(), Rows(named, GROUPS), asked, config)
    optimizer.schedule(hyper["start_pruning_step"], hyper["pruning_steps"])
    for step in trace["steps"]:
        set_grads(trace, step, named)
        optimizer.step()
        if "new_period" in step:
            want = torch.tensor(sum(step["new_period"]["global_scores"], []), dtype=torch.float64)
            torch.testing.assert_close(optimizer.seen, want, rtol=0, atol=1e-10)
        check_weights(trace, step, named)
        for key, field in (("pruned", "pruned_idxes"), ("redundant", "active_redundant_idxes")):
            masks = optimizer.rows.split(optimizer.units[key])
            found = {k: m.nonzero().flatten().tolist() for k, m in masks.items()}
            assert found == {k: sorted(v) for k, v in step[field].items()}, step["k"]


SIZES = (6, 5, 9)


def _problem(seed: int) -> tuple[dict[str, nn.Parameter], Rows]:
    generator = torch.Generator().manual_seed(seed)
    named = {
        f"{i}.{t}": nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64))
        for i, n in enumerate(SIZES)
        for t, s in (("w", (n, 3)), ("b", (n,)))
    }
    named["head"] = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
    groups = [plain_group(f"{i}", n, (f"{i}.w", f"{i}.b")) for i, n in enumerate(SIZES)]
    return named, Rows(named, groups)


def _noise(named: dict[str, nn.Parameter], generator: torch.Generator) -> None:
    for p in named.values():
        p.grad = 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    target=st.floats(0.0, 0.84),
    periods=st.integers(1, 5),
    length=st.integers(1, 4),
    start=st.integers(0, 3),
)
def test_removes_exactly_the_target_and_zeros_stay(
    seed: int, target: float, periods: int, length: int, start: int
) -> None:
    named, rows = _problem(seed)
    config = HESSOConfig(target_group_sparsity=target, periods=periods)
    optimizer = HESSO(named.values(), rows, sgd(0.05, 0.9), config)
    optimizer.schedule(start, periods * length)
    generator = torch.Generator().manual_seed(seed)
    before = torch.zeros(20, dtype=torch.bool)
    for _ in range(start + periods * length + 3):
        _noise(named, generator)
        optimizer.step()
        zero = rows.square_norms() == 0
        assert bool((before <= zero).all())
        assert bool((optimizer.units["pruned"] == zero).all())
        before = zero
    assert int(before.sum()) == int(20 * target)
    assert not optimizer.units["redundant"].any()


def test_the_shrink_is_linear_and_starts_with_the_first_step_of_the_period() -> None:
    named, rows = _problem(0)
    start = {n: p.detach().clone() for n, p in named.items()}
    config = HESSOConfig(target_group_sparsity=0.3, periods=1)
    optimizer = HESSO(named.values(), rows, sgd(0.1), config)
    optimizer.schedule(1, 4)
    for expected in (1.0, 2 / 3, 1 / 3, 0.0):
        for p in named.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        gone = optimizer.units["redundant"] | optimizer.units["pruned"]
        assert int(gone.sum()) == (0 if expected == 1.0 else 6)
        for i, mask in enumerate(rows.split(gone).values()):
            torch.testing.assert_close(named[f"{i}.w"][mask], expected * start[f"{i}.w"][mask])
            assert torch.equal(named[f"{i}.w"][~mask], start[f"{i}.w"][~mask])


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_each_criterion_alone(criterion: str) -> None:
    named, rows = _problem(1)
    _noise(named, torch.Generator().manual_seed(0))
    optimizer = HESSO(named.values(), rows, sgd(0.1), HESSOConfig(criteria={criterion: 1.0}))
    scores = optimizer.scores([p.grad for p in rows.params])
    x, v = (
        torch.cat([torch.cat([t[f"{i}.w"], t[f"{i}.b"][:, None]], 1) for i in range(3)])
        for t in ({n: p.detach() for n, p in named.items()}, {n: p.grad for n, p in named.items()})
    )
    inner = (x * v).sum(1)
    by_hand = {
        "magnitude": x.norm(dim=1),
        "avg_magnitude": x.norm(dim=1) / 4,
        "cosine_similarity": nn.functional.cosine_similarity(x, v) + 1,
        "taylor_first_order": inner.abs(),
        "taylor_second_order": inner.square() / 2,
    }[criterion]
    torch.testing.assert_close(scores, by_hand / by_hand.norm(), rtol=1e-6, atol=1e-7)


def test_the_lowest_scores_go_and_every_group_keeps_its_best() -> None:
    named, rows = _problem(2)
    with torch.no_grad():
        for t in ("w", "b"):
            named[f"1.{t}"].mul_(1e-3)
    optimizer = HESSO(named.values(), rows, sgd(0.0), HESSOConfig(criteria={"magnitude": 1.0}))
    norms = rows.split(rows.square_norms().sqrt())
    _noise(named, torch.Generator().manual_seed(0))
    optimizer.step()
    gone = rows.split(optimizer.units["pruned"])
    assert (~gone["1"]).nonzero().flatten().tolist() == [int(norms["1"].argmax())]
    rest = torch.cat([norms["0"], norms["2"]])
    limit = rest.sort().values[10 - 4]
    assert torch.equal(torch.cat([gone["0"], gone["2"]]), rest < limit)


def test_kept_channels_come_in_multiples() -> None:
    named, rows = _problem(3)
    config = HESSOConfig(target_group_sparsity=0.6, group_divisible=3, periods=2)
    optimizer = HESSO(named.values(), rows, sgd(0.01), config)
    optimizer.schedule(0, 4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        _noise(named, generator)
        optimizer.step()
    kept = {k: int((~m).sum()) for k, m in rows.split(optimizer.units["pruned"]).items()}
    untouched = {f"{i}": n for i, n in enumerate(SIZES)}
    assert all(n % 3 == 0 or n == untouched[k] for k, n in kept.items())
    assert all(n >= 3 for n in kept.values())
    assert sum(kept.values()) < 20


@pytest.mark.parametrize("variant", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("faithful", [False, True])
def test_a_step_never_waits_for_the_device(variant: str, faithful: bool) -> None:
    trace = load("hesso_ms_sgd")
    named = parameters(trace)
    set_grads(trace, trace["steps"][0], named)
    asked, config = direction(variant, 0.1, 0.9, 0.1), HESSOConfig(periods=2, faithful=faithful)
    optimizer = HESSO(named.values(), Rows(named, GROUPS), asked, config)
    optimizer.schedule(0, 4)
    with no_host_reads():
        for _ in range(5):
            optimizer.step()


@pytest.mark.parametrize("variant", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_makes_nothing_as_large_as_a_weight(variant: str, momentum: float) -> None:
    named, groups = wide_problem()
    asked = direction(variant, 0.1, momentum, 0.1)
    optimizer = HESSO(named.values(), Rows(named, groups), asked, HESSOConfig())
    optimizer.step()
    with no_large_memory(8000):
        optimizer.step()


def test_channels_behind_a_concat_stay_zero() -> None:
    """In the original they become nonzero again: see `faithful`."""
    trace = load("hesso_ms_sgd")
    named = parameters(trace)
    optimizer = HESSO(named.values(), Rows(named, GROUPS), sgd(0.05, 0.9), HESSOConfig(periods=3))
    optimizer.schedule(0, 6)
    for step in trace["steps"][:8]:
        set_grads(trace, step, named)
        optimizer.step()
    masks = optimizer.rows.split(optimizer.units["pruned"])
    for group in GROUPS:
        assert zero_rows(group, named) == masks[group.name].nonzero().flatten().tolist()
    assert sum(int(m.sum()) for m in masks.values()) == 7


@pytest.mark.parametrize("stop", [3, 4, 5, 8])
def test_resume_in_mid_period_is_bit_exact(stop: int) -> None:
    def run(stop: int) -> list[Tensor]:
        named, rows = _problem(4)
        config = HESSOConfig(periods=3)
        optimizer = HESSO(named.values(), rows, sgd(0.05, 0.9), config)
        optimizer.schedule(2, 9)
        generator = torch.Generator().manual_seed(0)
        for k in range(14):
            if k == stop:
                saved = copy.deepcopy(optimizer.state_dict())
                assert is_plain_tree(saved)
                optimizer = HESSO(named.values(), rows, sgd(0.9, 0.9), config)
                optimizer.load_state_dict(saved)
            _noise(named, generator)
            optimizer.step()
        return [p.detach() for p in named.values()]

    for a, b in zip(run(stop), run(-1), strict=True):
        assert torch.equal(a, b)


def test_the_method_counts_its_budget_in_steps_of_the_whole_training() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    units = Units((), (plain_group("0", 4, ("0.weight", "0.bias")),))
    method = HESSOMethod(HESSOConfig(start_fraction=0.1, pruning_fraction=0.25, periods=5))
    method.prepare(net, units)
    recipe = Recipe(epochs=10, optimizer={"lr": 0.1})
    (phase,) = method.phases(recipe)
    optimizer = method.optimizer(net, phase, recipe)
    method.after_backward(net, StepContext(phase, 0, 0, steps_per_epoch=10))
    found = {k: optimizer.units[k] for k in ("start_step", "length", "periods")}
    assert found == {"start_step": 10, "length": 5, "periods": 5}
    short = Recipe(epochs=1, optimizer={"lr": 0.1})
    optimizer = method.optimizer(net, Phase("train", 1), short)
    method.after_backward(net, StepContext(phase, 0, 0, steps_per_epoch=8))
    assert optimizer.units["periods"] == 2  # never more periods than steps
    stats = EpochStats(0, 0, {})
    assert method.end_epoch(net, stats) is False
    assert stats.logged["group_sparsity"] == 0.0
    assert method.saliency(net, units)["0"].shape == (4,)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="more than the whole training"):
        HESSOConfig(start_fraction=0.9, pruning_fraction=0.25)
    with pytest.raises(ValueError, match="all weights are 0"):
        HESSOConfig(criteria={"magnitude": 0.0})
