"""DHSPG against the authors' traces and against its own definition."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.dhspg import DHSPG, DHSPGConfig, DHSPGMethod
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


def _shared(first: int, size: int) -> tuple[Any, ...]:
    where = torch.arange(first, first + size)
    return tuple(piece(f"cat_bn.{t}", where, role="norm") for t in ("gamma", "beta"))


C1 = plain_group("c1", 6, ("conv1.w", "conv1.b", "bn1.gamma", "bn1.beta"))
C2 = plain_group("c2", 5, ("conv2.w",))
GROUPS = (
    ChannelGroup("c1", 6, (*C1.slices, *_shared(0, 6))),
    ChannelGroup("c2", 5, (*C2.slices, *_shared(6, 5))),
    plain_group("f", 7, ("fc.w", "fc.b")),
)


@pytest.mark.parametrize("name", ["dhspg_v2_sgd", "dhspg_v2_adam"])
def test_trace(name: str) -> None:
    trace = load(name)
    hyper, named = trace["hyper"], parameters(trace)
    asked = direction(
        hyper["variant"],
        hyper["lr"],
        hyper["first_momentum"] if hyper["variant"] == "sgd" else 0.0,
        betas=(hyper["first_momentum"], hyper["second_momentum"]),
    )
    config = DHSPGConfig(
        target_group_sparsity=hyper["target_group_sparsity"],
        tolerance_group_sparsity=hyper["tolerance_group_sparsity"],
        penalty=hyper["lmbda"],
        amplify=hyper["lmbda_amplify"],
        ceiling=hyper["hat_lmbda_coeff"],
        epsilon=hyper["epsilon"],
        faithful=True,
    )
    optimizer = DHSPG(named.values(), Rows(named, GROUPS), asked, config)
    optimizer.schedule(hyper["partition_step"], hyper["warm_up_steps"])
    for step in trace["steps"]:
        set_grads(trace, step, named)
        optimizer.step()
        check_weights(trace, step, named)
        assert {g.name: zero_rows(g, named) for g in GROUPS} == step["zero_groups"]
        if "partition" in step:
            masks = optimizer.rows.split(optimizer.units["penalized"])
            found = {k: m.nonzero().flatten().tolist() for k, m in masks.items()}
            assert found == step["partition"]["penalized"]


SIZES = (6, 5, 7)


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


def _run(optimizer: DHSPG, named: dict[str, nn.Parameter], steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        _noise(named, generator)
        optimizer.step()


@pytest.mark.parametrize("variant", ["sgd", "adam", "adamw"])
def test_reaches_the_target_then_trains_the_survivors_plainly(variant: str) -> None:
    named, rows = _problem(0)
    config = DHSPGConfig(penalty=0.5, epsilon=0.5, amplify=2.0, ceiling=10.0)
    optimizer = DHSPG(named.values(), rows, direction(variant, 0.05), config)
    _run(optimizer, named, 150)
    zero = rows.square_norms() == 0
    assert 0.5 <= zero.double().mean() <= 0.55
    assert bool((zero <= optimizer.units["penalized"]).all())
    penalized = rows.split(optimizer.units["penalized"])
    assert all(int((~mask).sum()) > 0 for mask in penalized.values())  # a survivor in each group
    if variant == "sgd":
        before = {n: p.detach().clone() for n, p in named.items()}
        _run(optimizer, named, 1, seed=1)
        for n, p in named.items():
            alive = torch.where(before[n] == 0, 0.0, 1.0)
            torch.testing.assert_close(p.detach(), before[n] - 0.05 * p.grad * alive)


def test_nothing_is_penalised_before_the_start() -> None:
    named, rows = _problem(1)
    plain = {n: p.detach().clone() for n, p in named.items()}
    optimizer = DHSPG(named.values(), rows, sgd(0.1), DHSPGConfig(penalty=5.0))
    optimizer.schedule(3, 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        _noise(named, generator)
        plain = {n: x - 0.1 * named[n].grad for n, x in plain.items()}
        optimizer.step()
    for n, p in named.items():
        torch.testing.assert_close(p.detach(), plain[n])
    assert not optimizer.units["penalized"].any()
    _run(optimizer, named, 1)
    assert int(optimizer.units["penalized"].sum()) == int(18 * 0.55)


@pytest.mark.parametrize(("variant", "torch_class"), [("adam", "Adam"), ("adamw", "AdamW")])
def test_adam_is_torchs_adam(variant: str, torch_class: str) -> None:
    """Before the partition, including weight decay, for both rows and plain parameters."""
    named, rows = _problem(2)
    twin = {n: nn.Parameter(p.detach().clone()) for n, p in named.items()}
    ours = DHSPG(named.values(), rows, direction(variant, 0.01, decay=0.1), DHSPGConfig())
    ours.schedule(100, 0)
    theirs = getattr(torch.optim, torch_class)(twin.values(), lr=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        _noise(named, generator)
        for n, p in twin.items():
            p.grad = named[n].grad.clone()
        ours.step()
        theirs.step()
    for n, p in twin.items():
        torch.testing.assert_close(named[n].detach(), p.detach(), rtol=1e-9, atol=1e-12)


def test_sgd_is_torchs_sgd_with_a_decay_per_param_group() -> None:
    named, rows = _problem(3)
    twin = {n: nn.Parameter(p.detach().clone()) for n, p in named.items()}

    def groups(source: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
        decayed = [p for n, p in source.items() if n.endswith("w")]
        spared = [p for n, p in source.items() if not n.endswith("w")]
        return [{"params": decayed, "weight_decay": 0.1}, {"params": spared}]

    ours = DHSPG(groups(named), rows, sgd(0.01, 0.9), DHSPGConfig())
    ours.schedule(100, 0)
    theirs = torch.optim.SGD(groups(twin), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        _noise(named, generator)
        for n, p in twin.items():
            p.grad = named[n].grad.clone()
        ours.step()
        theirs.step()
    for n, p in twin.items():
        torch.testing.assert_close(named[n].detach(), p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spared", [0.0, 0.3])
def test_a_decay_per_param_group_enters_the_projection(spared: float) -> None:
    named, rows = _problem(9)
    weights = [{"params": [p], "weight_decay": spared} for n, p in named.items() if "w" not in n]
    weights += [{"params": [p], "weight_decay": 0.3} for n, p in named.items() if "w" in n]
    optimizer = DHSPG(weights, rows, direction("adamw", 0.1), DHSPGConfig())
    decays = optimizer.row_decays()
    by_hand = rows.dots([d * p for d, p in zip(decays, rows.params, strict=True)], rows.params)
    found = optimizer.decay_inner(rows.square_norms(), decays)
    torch.testing.assert_close(found, by_hand)
    assert optimizer.decay_inner(rows.square_norms(), []) == 0.0


def test_row_decay_is_along_the_unit_row() -> None:
    named, rows = _problem(4)
    start = torch.cat([named["0.w"].detach(), named["0.b"].detach()[:, None]], 1)
    config = DHSPGConfig(weight_decay_type="l1_norm")
    optimizer = DHSPG(named.values(), rows, direction("adamw", 0.1, decay=0.5), config)
    optimizer.schedule(100, 0)
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    end = torch.cat([named["0.w"].detach(), named["0.b"].detach()[:, None]], 1)
    torch.testing.assert_close(end, start - 0.05 * start / start.norm(dim=1, keepdim=True))


def test_a_target_met_exactly_is_met() -> None:
    named, rows = _problem(5)
    optimizer = DHSPG(named.values(), rows, sgd(0.1), DHSPGConfig())
    literal = DHSPG(named.values(), rows, sgd(0.1), DHSPGConfig(faithful=True))
    alive = torch.arange(18) >= 9
    assert not optimizer._short_of_target(alive)
    assert literal._short_of_target(alive)
    assert optimizer._short_of_target(torch.arange(18) >= 8)


def test_kept_channels_come_in_multiples() -> None:
    named, rows = _problem(6)
    config = DHSPGConfig(target_group_sparsity=0.6, group_divisible=5)
    optimizer = DHSPG(named.values(), rows, sgd(0.1), config)
    _run(optimizer, named, 1)
    masks = rows.split(optimizer.units["penalized"])
    assert [int((~m).sum()) for m in masks.values()] == [5, 5, 5]
    assert not masks["1"].any()  # a group of five channels is not larger than five


@pytest.mark.parametrize("variant", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("faithful", [False, True])
def test_a_step_never_waits_for_the_device(variant: str, faithful: bool) -> None:
    named, rows = _problem(7)
    asked = direction(variant, 0.1, 0.9, 0.1)
    optimizer = DHSPG(named.values(), rows, asked, DHSPGConfig(faithful=faithful))
    _noise(named, torch.Generator().manual_seed(0))
    with no_host_reads():
        optimizer.step()
        optimizer.step()


@pytest.mark.parametrize("variant", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_makes_nothing_as_large_as_a_weight(variant: str, momentum: float) -> None:
    named, groups = wide_problem()
    asked = direction(variant, 0.1, momentum, 0.1)
    optimizer = DHSPG(named.values(), Rows(named, groups), asked, DHSPGConfig())
    optimizer.step()
    with no_large_memory(8000):
        optimizer.step()


@pytest.mark.parametrize("variant", ["sgd", "adam", "adamw"])
def test_resume_is_bit_exact(variant: str) -> None:
    def run(stop: int) -> list[Tensor]:
        named, rows = _problem(8)
        config = DHSPGConfig(penalty=0.3)
        optimizer = DHSPG(named.values(), rows, direction(variant, 0.05, 0.9), config)
        optimizer.schedule(2, 0)
        generator = torch.Generator().manual_seed(0)
        for k in range(20):
            if k == stop:
                saved = copy.deepcopy(optimizer.state_dict())
                assert is_plain_tree(saved)
                optimizer = DHSPG(named.values(), rows, direction(variant, 0.9, 0.9), config)
                optimizer.load_state_dict(saved)
            _noise(named, generator)
            optimizer.step()
        return [p.detach() for p in named.values()]

    for a, b in zip(run(7), run(-1), strict=True):
        assert torch.equal(a, b)


def test_the_method_counts_its_start_in_steps_of_the_whole_training() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    units = Units((), (plain_group("0", 4, ("0.weight", "0.bias")),))
    for config, start in (
        (DHSPGConfig(start_fraction=0.25, warmup_fraction=0.5), 25),
        (DHSPGConfig(start_epochs=3), 30),
    ):
        method = DHSPGMethod(config)
        method.prepare(net, units)
        recipe = Recipe(epochs=10, optimizer={"name": "adam", "lr": 0.01})
        (phase,) = method.phases(recipe)
        optimizer = method.optimizer(net, phase, recipe)
        method.after_backward(net, StepContext(phase, 0, 0, steps_per_epoch=10))
        assert optimizer.units["start_step"] == start
        assert optimizer.penalty == 1e-2  # Adam's default
    stats = EpochStats(0, 0, {})
    assert method.end_epoch(net, stats) is False
    assert stats.logged["group_sparsity"] == 0.0
    assert method.saliency(net, units)["0"].shape == (4,)


def test_a_recipe_without_row_wise_form_is_refused() -> None:
    recipe = Recipe(epochs=1, optimizer={"name": "adadelta"})
    with pytest.raises(ValueError, match="adadelta"):
        DHSPGMethod(DHSPGConfig()).optimizer(nn.Linear(1, 1), Phase("train", 1), recipe)
