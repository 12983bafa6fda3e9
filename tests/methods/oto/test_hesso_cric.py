"""HESSO-CRIC's optimizer against its own definition; no recorded run of the authors' exists."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods._oto.redundancy import redundancy
from methods.hesso_cric import HESSOCRIC, HESSOCRICConfig, Timetable
from pipeline.units.rows import Rows
from tests.methods.oto.oto_traces import direction, is_plain_tree, no_host_reads, plain_group, sgd

SIZES = (6, 5, 9)
TIMES = Timetable(start_step=2, trials=2, cycles=3, sampling_steps=3, hybrid_steps=4)
LONGEST = 2 + 1 + 2 * 2 * 3 + 3 * 3 + 4


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


def _step(optimizer: HESSOCRIC, named: dict[str, nn.Parameter], generator: torch.Generator) -> None:
    for p in named.values():
        p.grad = 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    optimizer.observe(sum((p.detach().square().sum() for p in named.values()), torch.zeros(())))
    optimizer.step()


def _copies(named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in named.items()}


def _until(
    stage: str, config: HESSOCRICConfig, times: Timetable = TIMES, seed: int = 0, **asked: float
) -> tuple:
    named, rows = _problem(seed)
    optimizer = HESSOCRIC(named.values(), rows, sgd(0.05, **asked), config)
    optimizer.schedule(times)
    generator = torch.Generator().manual_seed(seed)
    while optimizer.units["stage"] != stage:
        _step(optimizer, named, generator)
    return named, rows, optimizer, generator


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    target=st.floats(0.0, 0.84),
    trials=st.integers(0, 3),
    cycles=st.integers(1, 4),
    sampling=st.integers(1, 4),
    hybrid=st.integers(1, 4),
)
def test_removes_exactly_the_target_and_zeros_stay(
    seed: int, target: float, trials: int, cycles: int, sampling: int, hybrid: int
) -> None:
    times = Timetable(1, trials, cycles, sampling, hybrid)
    config = HESSOCRICConfig(target_group_sparsity=target)
    named, rows, optimizer, generator = _until("after", config, times, seed, momentum=0.9)
    assert optimizer.units["step"] <= 2 + 2 * trials * 3 + cycles * sampling + hybrid
    gone = rows.square_norms() == 0
    assert int(gone.sum()) == int(20 * target)
    before = _copies(named)
    _step(optimizer, named, generator)
    assert torch.equal(rows.square_norms() == 0, gone)
    assert all(not torch.equal(p, before[n]) for n, p in named.items())  # the others train
    assert not any("reference" in own for own in optimizer.state.values())


def test_a_trial_sets_the_lowest_of_one_group_to_zero_and_nothing_learns() -> None:
    named, rows, optimizer, generator = _until("trials", HESSOCRICConfig())
    reference, rank = _copies(named), rows.split(optimizer.units["rank"])
    for fraction in (0.5, 0.25):
        for i, n in enumerate(SIZES):
            _step(optimizer, named, generator)
            low = rank[f"{i}"] < int(fraction * n)
            for name, p in named.items():
                want = reference[name].clone()
                if name.startswith(f"{i}."):
                    want[low] = 0.0
                assert torch.equal(p, want), name
            _step(optimizer, named, generator)
            assert all(torch.equal(p, reference[k]) for k, p in named.items())
    assert optimizer.units["stage"] == "cycles"


def test_the_loss_term_is_the_mean_excess_over_the_trials_of_a_channel() -> None:
    """Four channels: zeroing half of them doubles the loss, a quarter does not change it, three
    quarters multiply it by five."""
    named = {"w": nn.Parameter(torch.arange(1.0, 5.0)[:, None])}
    rows = Rows(named, [plain_group("w", 4, ("w",))])
    optimizer = HESSOCRIC(named.values(), rows, sgd(0.0), HESSOCRICConfig())
    optimizer.schedule(Timetable(0, 3, 1, 1, 1))
    losses = {0: 2.0, 1: 2.0, 2: 4.0, 3: 10.0}
    named["w"].grad = torch.zeros(4, 1)
    for _ in range(7):
        optimizer.observe(torch.tensor(losses[int((named["w"] == 0).sum())]))
        optimizer.step()
    half, quarter, most = 1.0, 0.0, 4.0
    want = [(half + quarter + most) / 3, (half + most) / 2, most, most]
    torch.testing.assert_close(optimizer.loss_term(), torch.tensor(want))
    length = torch.tensor(want).norm()  # more than the 2 of four doubled losses
    torch.testing.assert_close(optimizer.final_scores(), torch.tensor(want) / length)


def test_a_cycle_walks_the_suspects_to_zero_and_all_weights_go_back() -> None:
    named, rows, optimizer, _ = _until("cycles", HESSOCRICConfig(target_group_sparsity=0.3))
    reference, suspects = _copies(named), optimizer.units["redundant"]
    assert int(suspects.sum()) == 6
    for left in (2 / 3, 1 / 3, None):
        for p in named.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        if left is None:
            assert all(torch.equal(p, reference[n]) for n, p in named.items())
            continue
        for i, mask in enumerate(rows.split(suspects).values()):
            torch.testing.assert_close(named[f"{i}.w"][mask], left * reference[f"{i}.w"][mask])
            assert torch.equal(named[f"{i}.w"][~mask], reference[f"{i}.w"][~mask])


def test_plain_parameters_learn_in_a_cycle_and_go_back_too() -> None:
    named, _, optimizer, generator = _until("cycles", HESSOCRICConfig())
    head = named["head"].detach().clone()
    _step(optimizer, named, generator)
    assert not torch.equal(named["head"], head)
    _step(optimizer, named, generator)
    _step(optimizer, named, generator)
    assert torch.equal(named["head"], head)


def test_no_channel_is_tested_twice_and_the_cycles_stop_when_nothing_is_new() -> None:
    many = Timetable(start_step=0, trials=0, cycles=50, sampling_steps=4, hybrid_steps=2)
    named, rows = _problem(3)
    config = HESSOCRICConfig(criteria={"taylor_first_order": 1.0})
    optimizer = HESSOCRIC(named.values(), rows, sgd(0.3), config)
    optimizer.schedule(many)
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(20, dtype=torch.bool)
    cycle = -1
    while optimizer.units["stage"] in ("before", "cycles"):
        _step(optimizer, named, generator)
        if optimizer.units["stage"] == "cycles" and optimizer.units["cycle"] != cycle:
            cycle = optimizer.units["cycle"]
            assert not (seen & optimizer.units["redundant"]).any()
            seen |= optimizer.units["redundant"]
    assert 1 < optimizer.units["cycle"] < 50
    assert int(seen.sum()) > 10


def test_the_tolerance_stops_the_cycles() -> None:
    counts = []
    for tolerance in (0, 20):
        config = HESSOCRICConfig(tolerance=tolerance, criteria={"taylor_first_order": 1.0})
        counts.append(_until("shrink", config)[2].units["cycle"])
    assert counts[0] > counts[1] == 1


def test_the_final_score_is_the_mean_of_all_samples() -> None:
    config = HESSOCRICConfig(criteria={"magnitude": 1.0})
    named, rows, optimizer, generator = _until("cycles", config)
    total, number = torch.zeros(20, dtype=torch.float64), 0
    while optimizer.units["stage"] == "cycles":
        before = [p.detach().clone() for p in rows.params]
        total += redundancy(rows, before, {"magnitude": 1.0})
        number += 1
        _step(optimizer, named, generator)
    assert number == optimizer.units["samples"]
    torch.testing.assert_close(optimizer.final_scores(), total / number)


def _spared(loss_weight: float) -> bool:
    """Whether a channel with small weights but a large effect on the loss survives."""
    named, rows = _problem(5)
    with torch.no_grad():
        named["2.w"][4], named["2.b"][4] = 1e-3, 1e-3
    criteria = {"magnitude": 0.2, "loss": loss_weight}
    config = HESSOCRICConfig(target_group_sparsity=0.3, criteria=criteria)
    optimizer = HESSOCRIC(named.values(), rows, sgd(0.0), config)
    optimizer.schedule(TIMES)
    while optimizer.units["stage"] != "after":
        for p in named.values():
            p.grad = torch.zeros_like(p)
        gone = bool((named["2.w"][4] == 0).all())
        optimizer.observe(torch.tensor(5.0 if gone else 1.0))
        optimizer.step()
    return bool((named["2.w"][4] != 0).all())


def test_the_loss_spares_what_the_scores_alone_would_remove() -> None:
    assert not _spared(0.0)
    assert _spared(1.0)


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
def test_resume_at_any_step_is_bit_exact(variant: str) -> None:
    config = HESSOCRICConfig()

    def run(stop: int) -> list[Tensor]:
        named, rows = _problem(4)
        asked = direction(variant, 0.05, 0.9, 0.1)
        optimizer = HESSOCRIC(named.values(), rows, asked, config)
        optimizer.schedule(TIMES)
        generator = torch.Generator().manual_seed(0)
        for k in range(LONGEST + 3):
            if k == stop:
                saved = copy.deepcopy(optimizer.state_dict())
                assert is_plain_tree(saved)
                other = direction(variant, 0.9, 0.9)
                optimizer = HESSOCRIC(named.values(), rows, other, config)
                optimizer.load_state_dict(saved)
            _step(optimizer, named, generator)
        assert optimizer.units["stage"] == "after"
        return [p.detach() for p in named.values()]

    whole = run(-1)
    for stop in range(1, LONGEST + 2):
        assert all(torch.equal(a, b) for a, b in zip(run(stop), whole, strict=True)), stop


def test_only_the_end_of_a_cycle_waits_for_the_device() -> None:
    named, rows = _problem(7)
    optimizer = HESSOCRIC(named.values(), rows, sgd(0.1), HESSOCRICConfig())
    optimizer.schedule(TIMES)
    generator = torch.Generator().manual_seed(0)
    for _ in range(LONGEST + 1):
        last = optimizer.units["call"] == TIMES.sampling_steps - 1
        ends = optimizer.units["stage"] == "cycles" and last
        with nullcontext() if ends else no_host_reads():
            _step(optimizer, named, generator)
    assert optimizer.units["stage"] == "after"


def test_kept_channels_come_in_multiples() -> None:
    config = HESSOCRICConfig(target_group_sparsity=0.6, group_divisible=3)
    named, rows, optimizer, _ = _until("after", config)
    del named
    kept = {k: int((~m).sum()) for k, m in rows.split(optimizer.units["pruned"]).items()}
    assert all(n % 3 == 0 or n == SIZES[int(k)] for k, n in kept.items())
    assert all(n >= 3 for n in kept.values())


def test_the_trials_need_the_loss() -> None:
    named, _, optimizer, _ = _until("trials", HESSOCRICConfig())
    with pytest.raises(ValueError, match="observe"):
        optimizer.step()
    assert optimizer.step(lambda: named["head"].sum()) == named["head"].sum()
    assert optimizer.units["call"] == 1
