"""HSPG against the authors' traces and against its own definition."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.hspg import HSPG, HSPGConfig, HSPGMethod
from pipeline.training.recipe import Recipe
from pipeline.units.groups import ChannelGroup, Units
from pipeline.units.rows import Rows
from tests.methods.oto.oto_traces import (
    check_weights,
    is_plain_tree,
    load,
    no_host_reads,
    no_large_memory,
    parameters,
    piece,
    plain_group,
    set_grads,
    tensor,
    wide_problem,
    zero_rows,
)

HEADS = torch.arange(4)[:, None] + torch.tensor([0, 4])  # feature j of both heads


GROUPS = (
    ChannelGroup("mha", 4, tuple(piece(f"mha.{t}", HEADS) for t in ("qw", "qb", "kw", "kb"))),
    plain_group("fc", 6, ("fc.w", "fc.b")),
    plain_group("conv", 8, ("conv.w", "conv.gamma", "conv.beta")),
)


class _TracedChoice(HSPG):
    """Chooses the rows that the original chose at random."""

    chosen: list[Tensor]

    def _order(self, square: Tensor) -> Tensor:
        return 1.0 - torch.cat(self.chosen).to(square.dtype)


def _stage_optimizer(
    trace: dict[str, Any], named: dict[str, nn.Parameter], step: dict[str, Any]
) -> HSPG:
    hyper = trace["hyper"]
    config = HSPGConfig(penalty=step["lmbda"], momentum=hyper["momentum"], faithful=True)
    plain = {"params": [named["plain.w"], named["plain.b"]], "momentum": hyper["momentum_type1"]}
    rest = {"params": [p for n, p in named.items() if not n.startswith("plain")]}
    half_space = step["stage"] == "half_space"
    made = _TracedChoice([plain, rest], Rows(named, GROUPS), step["lr"], config, half_space)
    made._bound(torch.tensor(hyper["upper_group_sparsity_by_type"][2:], dtype=torch.float64))
    made.units["epsilon"] = torch.tensor(step["epsilon"][1:], dtype=torch.float64)
    return made


@pytest.mark.parametrize("name", ["hspg_v1_eps0", "hspg_v1_momentum", "hspg_v1_upper_bug"])
def test_trace(name: str) -> None:
    trace = load(name)
    named = parameters(trace)
    optimizer, stage = None, ""
    for step in trace["steps"]:
        if step["stage"] != stage:
            optimizer, stage = _stage_optimizer(trace, named, step), step["stage"]
        for group in optimizer.param_groups:
            group.update(lr=step["lr"], penalty=step["lmbda"])
        newly = step["newly_zero"]
        optimizer.chosen = [
            torch.tensor([i in newly[g.name] for i in range(g.size)]) for g in GROUPS
        ]
        set_grads(trace, step, named)
        optimizer.step()
        check_weights(trace, step, named)
        assert {g.name: zero_rows(g, named) for g in GROUPS} == step["zero_groups"]


def test_trace_of_a_network() -> None:
    """With our own gradients and phases: warm-up, then half-space."""
    trace = load("hspg_v1_net")
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).double()
    named = dict(net.named_parameters())
    for n, v in trace["init"].items():
        named[n].data.copy_(tensor(trace, n, v))
    norm = ("weight", "bias", "running_mean", "running_var")
    groups = tuple(
        plain_group(f"{i}.weight", 5, (f"{i}.weight", *(f"{i + 1}.{t}" for t in norm)))
        for i in (0, 3)
    )
    x = torch.tensor(trace["X"], dtype=torch.float64).reshape(trace["X_shape"])
    y = torch.tensor(trace["y"])
    hyper = trace["hyper"]
    method = HSPGMethod(
        HSPGConfig(penalty=hyper["lmbda"], epsilon=hyper["epsilon"], warmup_epochs=8, faithful=True)
    )
    recipe = Recipe(epochs=20, optimizer={"lr": hyper["lr"]})
    method.prepare(net, Units((), groups))
    steps = iter(trace["steps"])
    for phase in method.phases(recipe):
        optimizer = method.optimizer(net, phase, recipe)
        for _ in range(phase.epochs):
            step = next(steps)
            loss = nn.functional.cross_entropy(net(x), y)
            assert loss.item() == pytest.approx(step["loss"], abs=1e-10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            check_weights(trace, step, named)
    saliency = method.saliency(net, Units((), groups))
    dead = {k: (v == 0).nonzero().flatten().tolist() for k, v in saliency.items()}
    assert dead == trace["steps"][-1]["zero_groups"]


def _random_rows(seed: int, size: int = 6) -> tuple[dict[str, nn.Parameter], Rows]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.w": (size, 2, 3), "conv.b": (size,), "head": (3,)}
    named = {
        n: nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64))
        for n, s in shapes.items()
    }
    for p in named.values():
        p.grad = 10.0 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        named["conv.w"][1], named["conv.b"][1] = 0.0, 0.0
    return named, Rows(named, [plain_group("conv", size, ("conv.w", "conv.b"))])


def _full_rows(named: dict[str, nn.Parameter]) -> Tensor:
    return torch.cat([named["conv.w"].detach().flatten(1), named["conv.b"].detach()[:, None]], 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lr=st.floats(0.001, 0.5),
    penalty=st.floats(0.0, 1.0),
    epsilon=st.floats(0.0, 0.99),
)
def test_projects_exactly_when_the_step_leaves_the_half_space(
    seed: int, lr: float, penalty: float, epsilon: float
) -> None:
    named, rows = _random_rows(seed)
    x = _full_rows(named)
    grads = torch.cat([named["conv.w"].grad.flatten(1), named["conv.b"].grad[:, None]], 1)
    unit = x / (x.norm(dim=1, keepdim=True) + 1e-6)
    trial = x - lr * (grads + penalty * unit)
    leaves = (trial * x).sum(1) < epsilon * (x * x).sum(1)
    expected = torch.where((leaves | (x == 0).all(1))[:, None], 0.0, trial)
    HSPG(named.values(), rows, lr, HSPGConfig(penalty=penalty, epsilon=epsilon)).step()
    torch.testing.assert_close(_full_rows(named), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), upper=st.floats(0.0, 1.0), size=st.integers(2, 12))
def test_never_exceeds_its_cap_and_takes_the_smallest(seed: int, upper: float, size: int) -> None:
    named, rows = _random_rows(seed, size)
    start = _full_rows(named)
    free = copy.deepcopy(named)
    for n, p in free.items():
        p.grad = named[n].grad.clone()
    options = {"penalty": 0.5, "epsilon": 0.9}
    free_rows = Rows(free, [plain_group("conv", size, ("conv.w", "conv.b"))])
    HSPG(free.values(), free_rows, 0.3, HSPGConfig(**options)).step()
    HSPG(named.values(), rows, 0.3, HSPGConfig(**options, upper_group_sparsity=upper)).step()
    candidates = (_full_rows(free) == 0).all(1) & (start != 0).any(1)
    taken = (_full_rows(named) == 0).all(1) & (start != 0).any(1)
    before = 1
    assert (before + int(taken.sum())) / size <= max(upper, before / size) + 1e-12
    assert bool((taken <= candidates).all())
    assert int(taken.sum()) == min(int(candidates.sum()), max(int(upper * size + 1e-9) - before, 0))
    left = candidates & ~taken
    if taken.any() and left.any():
        assert start[taken].norm(dim=1).max() <= start[left].norm(dim=1).min()


def test_zero_channels_stay_zero_and_the_rest_moves() -> None:
    named, rows = _random_rows(3)
    head = named["head"].detach().clone()
    optimizer = HSPG(named.values(), rows, 0.1, HSPGConfig(momentum=0.9))
    for _ in range(5):
        optimizer.step()
        assert bool((_full_rows(named)[1] == 0).all())
    moved = head - 0.1 * named["head"].grad * sum((1 - 0.9 ** (i + 1)) / 0.1 for i in range(5))
    torch.testing.assert_close(named["head"].detach(), moved)


def test_frozen_parameters_do_not_move() -> None:
    named, _ = _random_rows(4)
    named["conv.b"].requires_grad_(False)
    before = named["conv.b"].detach().clone()
    rows = Rows(named, [plain_group("conv", 6, ("conv.w", "conv.b"))])
    live = [p for p in named.values() if p.requires_grad]
    HSPG(live, rows, 0.1, HSPGConfig(penalty=1.0, epsilon=0.99)).step()
    assert torch.equal(named["conv.b"], before)


@pytest.mark.parametrize("half_space", [False, True])
@pytest.mark.parametrize("faithful", [False, True])
def test_a_step_never_waits_for_the_device(half_space: bool, faithful: bool) -> None:
    named, rows = _random_rows(5)
    config = HSPGConfig(
        momentum=0.9, upper_group_sparsity=0.5, adapt_epsilon_steps=1, faithful=faithful
    )
    optimizer = HSPG(named.values(), rows, 0.1, config, half_space)
    with no_host_reads():
        optimizer.step()
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_makes_nothing_as_large_as_a_weight(momentum: float) -> None:
    named, groups = wide_problem()
    optimizer = HSPG(named.values(), Rows(named, groups), 0.1, HSPGConfig(momentum=momentum))
    optimizer.step()
    with no_large_memory(8000):
        optimizer.step()


def test_resume_is_bit_exact() -> None:
    def run(stop: int) -> dict[str, nn.Parameter]:
        named, rows = _random_rows(6)
        options = HSPGConfig(momentum=0.9, adapt_epsilon_steps=2, upper_group_sparsity=0.6)
        optimizer = HSPG(named.values(), rows, 0.01, options)
        generator = torch.Generator().manual_seed(0)
        for k in range(12):
            if k == stop:
                saved = copy.deepcopy(optimizer.state_dict())
                assert is_plain_tree(saved)
                optimizer = HSPG(named.values(), rows, 0.5, options)
                optimizer.load_state_dict(saved)
            for p in named.values():
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            optimizer.step()
        return named

    for a, b in zip(run(5).values(), run(-1).values(), strict=True):
        assert torch.equal(a, b)
