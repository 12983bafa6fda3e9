"""Pruning at initialisation: exact sparsity, a fixed mask, SynFlow's rounds, model untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from methods.init_pruning import InitPruning, InitPruningConfig
from pipeline.study.registry import method_spec
from pipeline.training.method import Phase, StepContext
from pipeline.units.groups import Units

BATCHES = [
    (torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3)
]


def net_and_units() -> tuple[nn.Sequential, Units]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    return net, Units(("0.weight", "3.weight", "6.weight"), ())


def prepared(net: nn.Module, units: Units, **settings: object) -> InitPruning:
    method = method_spec("init_pruning").build(InitPruningConfig(**settings))
    method.prepare(net, units, iter(BATCHES))
    return method


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "magnitude", "random"])
def test_exact_sparsity_and_untouched_model(criterion: str) -> None:
    net, units = net_and_units()
    before = copy.deepcopy(net.state_dict())
    method = prepared(net, units, criterion=criterion, sparsity=0.75)
    plan = method.plan()
    assert plan.total == 72 + 576 + 96
    assert plan.kept == plan.total // 4
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    again = prepared(net, units, criterion=criterion, sparsity=0.75)
    assert again.plan().digest() == plan.digest()


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_allocations(allocation: str) -> None:
    net, units = net_and_units()
    method = prepared(net, units, criterion="magnitude", sparsity=0.8, allocation=allocation)
    density = {n: float(m.double().mean()) for n, m in method.keep.items()}
    if allocation == "uniform":
        assert density == pytest.approx(dict.fromkeys(density, 0.2), abs=1 / 72)
    else:
        assert density["3.weight"] < density["0.weight"]


def test_synflow_in_rounds_avoids_layer_collapse() -> None:
    """One shot empties a layer at this density; 100 rounds, the default, do not."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(n, m, bias=False) for n, m in ((36, 4), (4, 60), (60, 3))))
    units = Units(tuple(f"{k}.weight" for k in range(3)), ())
    batches = [(torch.randn(2, 36), torch.tensor([0, 1]))]

    def emptied(rounds: int | None) -> bool:
        config = InitPruningConfig(criterion="synflow", sparsity=0.97, rounds=rounds)
        method = InitPruning(config)
        method.prepare(net, units, batches)
        return not all(m.any() for m in method.keep.values())

    assert emptied(1)
    assert not emptied(None)


def test_the_mask_holds_through_training_and_resume() -> None:
    net, units = net_and_units()
    method = prepared(net, units, sparsity=0.9, layers="conv")
    assert set(method.keep) == {"0.weight", "3.weight"}
    resumed = prepared(net, units, criterion="random", sparsity=0.5, layers="conv")
    resumed.load_state_dict(method.state_dict())
    assert resumed.plan().digest() == method.plan().digest()
    with torch.no_grad():
        for name, mask in method.keep.items():
            net.get_parameter(name).mul_(mask)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(BATCHES[0][0]), BATCHES[0][1]).backward()
        method.after_backward(net, StepContext(Phase("train", 1), step, step, 3))
        optimizer.step()
    saliency = method.saliency(net, units)
    for name, mask in method.keep.items():
        assert not net.get_parameter(name)[~mask].any()
        assert torch.equal(saliency[name] > 0, mask)
    assert (saliency["6.weight"] > 0).all()


def test_data_is_needed_and_asked_for() -> None:
    net, units = net_and_units()
    with pytest.raises(ValueError, match="criterion: snip needs a training batch"):
        InitPruning(InitPruningConfig()).prepare(net, units)
