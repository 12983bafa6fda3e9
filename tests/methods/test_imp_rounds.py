"""IMP: rewinding, levels with their own mask, permanent zeros, extension, resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from methods.imp import IMP, IMPConfig
from pipeline.files import load_tree
from pipeline.selection.masks import Shuffle, shuffled
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.phases import Phase, StepContext
from pipeline.training.recipe import OptimizerConfig, Recipe
from tests.methods.imp_net import (
    RECIPE,
    apply_plan,
    bits,
    run_rounds,
    started,
    trace_net,
    units_of,
)
from tests.pipeline.training import toy


def test_the_last_round_is_not_pruned_again_and_can_be_extended() -> None:
    net = trace_net()
    short = started(IMPConfig(rounds=2, rewind="lr"), net)
    run_rounds(short, net, None)
    assert {n: bits(m) for n, m in short.plan().keep.items()} == {
        n: bits(m) for n, m in short.keep.items()
    }
    longer = started(IMPConfig(rounds=3, rewind="lr"), net)
    longer.load_state_dict(short.state_dict())
    phases = longer.phases(RECIPE)
    assert phases[:3] == short.phases(RECIPE)
    longer.optimizer(net, phases[3], RECIPE)
    apply_plan(longer, net)
    straight_net = trace_net()
    straight = started(IMPConfig(rounds=3, rewind="lr"), straight_net)
    run_rounds(straight, straight_net, None)
    assert all(torch.equal(longer.keep[n], straight.keep[n]) for n in longer.keep)


def test_a_level_carries_the_mask_it_was_trained_with() -> None:
    net = trace_net()
    method = started(IMPConfig(rounds=2, prune_per_round=0.5, rewind="lr"), net)
    method.end_phase(net, Phase("round-0", 1))
    saliency = method.saliency(net, units_of(net))
    assert all((s > 0).all() for s in saliency.values()), "level 0 is dense"
    assert method.plan().density == pytest.approx(0.5)


def test_saliency_is_zero_exactly_where_masked() -> None:
    net = trace_net()
    method = started(IMPConfig(rounds=2, prune_per_round=0.5, rewind="lr"), net)
    run_rounds(method, net, None)
    with torch.no_grad():
        alive = method.keep["0.weight"].flatten().nonzero()[0]
        net[0].weight.view(-1)[alive] = 0.0
    saliency = method.saliency(net, units_of(net))
    for name, mask in method.keep.items():
        assert torch.equal(saliency[name] > 0, mask)
    assert (saliency["3.weight"] > 0).all(), "a layer that takes no part is kept whole"


def test_extending_with_another_rate_is_refused() -> None:
    net = trace_net()
    state = started(IMPConfig(rounds=2, target=0.5), net).state_dict()
    with pytest.raises(ValueError, match="prune_per_round"):
        started(IMPConfig(rounds=3, target=0.5), net).load_state_dict(state)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adadelta"])
def test_masked_weights_and_their_momentum_stay_zero(optimizer: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    recipe = RECIPE.model_copy(
        update={
            "optimizer": OptimizerConfig(
                name=optimizer, lr=0.1, weight_decay=1e-2, nesterov=optimizer == "sgd"
            )
        }
    )
    method = started(IMPConfig(rounds=1, prune_per_round=0.6, rewind="lr"), net)
    optimizer_of = None
    for phase in method.phases(recipe):
        optimizer_of = method.optimizer(net, phase, recipe)
        apply_plan(method, net)
        for step in range(4):
            optimizer_of.zero_grad()
            net(torch.randn(4, 1, 8, 8)).square().mean().backward()
            method.after_backward(net, StepContext(phase, step, step, 4))
            optimizer_of.step()  # without enforcement: removed weights must remain zero anyway
        method.end_phase(net, phase)
    for name, mask in method.keep.items():
        parameter = net.get_parameter(name)
        assert (parameter[~mask] == 0).all()
        assert (parameter[mask] != 0).all()
        for key, buffer in optimizer_of.state[parameter].items():
            if buffer.shape == parameter.shape:
                assert (buffer[~mask] == 0).all(), key


PHASES = {
    "finetune": (7, "current", 9),
    "init": (10, "init", 0),
    "epoch": (7, "rewind", 3),
    "lr": (7, "current", 3),
    "random": (10, "random", 0),
}


@pytest.mark.parametrize("rewind", PHASES)
def test_the_retraining_rule_is_phase_data(rewind: str) -> None:
    method = IMP(IMPConfig(rounds=3, rewind=rewind))
    first, *later = method.phases(RECIPE)
    assert (first.name, first.epochs, first.start_from, first.lr_epoch) == (
        "round-0",
        10,
        "current",
        0,
    )
    assert [p.name for p in later] == ["round-1", "round-2", "round-3"]
    assert all(p.keep for p in (first, *later))
    assert {(p.epochs, p.start_from, p.lr_epoch) for p in later} == {PHASES[rewind]}


@settings(max_examples=50, deadline=None)
@given(epochs=st.integers(1, 200), back=st.integers(0, 200), rewind=st.sampled_from(list(PHASES)))
def test_retrain_epochs(epochs: int, back: int, rewind: str) -> None:
    method = IMP(IMPConfig(rounds=1, rewind=rewind, retrain_epochs=back))
    recipe = Recipe(epochs=epochs, rewind_epoch=min(2, epochs))
    if rewind == "lr" and back > epochs:
        with pytest.raises(ValueError, match="retrain_epochs"):
            method.phases(recipe)
        return
    phase = method.phases(recipe)[1]
    assert phase.epochs == back
    if rewind == "lr":
        assert phase.lr_epoch + phase.epochs == epochs


def test_learning_rates_of_the_rules() -> None:
    net = trace_net()

    def rates(rewind: str) -> list[float]:
        method = started(IMPConfig(rounds=1, rewind=rewind), net)
        phase = method.phases(RECIPE)[1]
        optimizer = method.optimizer(net, phase, RECIPE)
        schedule = method.schedule(optimizer, phase, RECIPE)
        seen = []
        for _ in range(phase.epochs):
            seen.append(round(optimizer.param_groups[0]["lr"], 9))
            schedule.step(None)
        return seen

    full = [0.1] * 5 + [0.01] * 3 + [0.001] * 2
    assert rates("init") == full
    assert rates("epoch") == rates("lr") == full[3:]
    assert rates("finetune") == [0.001] * 7


def test_rewind_past_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.rewind_epoch \(12\)"):
        IMP(IMPConfig()).phases(Recipe(epochs=10, rewind_epoch=12))


@pytest.mark.parametrize("across", ["layerwise", "global"])
def test_shuffled_control_keeps_the_counts(across: Shuffle) -> None:
    net = trace_net()
    method = started(IMPConfig(rounds=2, prune_per_round=0.5, rewind="init", shuffle=across), net)
    assert [p.name for p in method.phases(RECIPE)][-2:] == ["round-2", "shuffled"]
    rounds = run_rounds(method, net, copy.deepcopy(net.state_dict()))
    ticket, control = rounds[2], rounds[3]
    counts = [{n: int(m.sum()) for n, m in keep.items()} for keep in (ticket, control)]
    assert sum(counts[0].values()) == sum(counts[1].values())
    assert (counts[0] == counts[1]) is (across == "layerwise")
    assert any(not torch.equal(ticket[n], control[n]) for n in ticket)
    again = shuffled(ticket, across, 0)
    assert all(torch.equal(again[n], control[n]) for n in control)
    assert torch.equal(method.plan().keep["1.weight"], control["1.weight"])


def test_shuffling_needs_weights_to_go_back_to() -> None:
    with pytest.raises(ValidationError, match="rewind: init, epoch or random"):
        IMPConfig(shuffle="global", rewind="lr")


def test_resume_inside_a_round_and_between_rounds() -> None:
    net = trace_net()
    config = IMPConfig(rounds=2, prune_per_round=0.5, rewind="lr")
    method = started(config, net)
    method.end_phase(net, Phase("round-0", 1))
    between = started(config, net)
    between.load_state_dict(method.state_dict())
    phase = method.phases(RECIPE)[1]
    for one in (method, between):
        one.optimizer(net, phase, RECIPE)
    inside = started(config, net)
    inside.load_state_dict(method.state_dict())
    inside.optimizer(net, phase, RECIPE)
    assert method.plan().density == pytest.approx(0.5)
    assert method.plan().digest() == between.plan().digest() == inside.plan().digest()
    assert inside.plan() is inside.plan(), "the loop caches by identity"


def test_through_the_loop_a_rewound_round_begins_with_initial_weights_masked(
    tmp_path: Path,
) -> None:
    method = IMP(IMPConfig(rounds=2, prune_per_round=0.5, layers="all", rewind="init"))
    made = toy.job(method)
    initial = copy.deepcopy(made.model.state_dict())
    met: list[dict[str, Tensor]] = []

    def look(module: nn.Module, args: Any) -> None:
        if module.training:
            met.append(copy.deepcopy(module.state_dict()))

    made.model.register_forward_pre_hook(look)
    toy.train(tmp_path, made)
    levels = CheckpointFolder(tmp_path, "x").snapshots()
    masks = [load_tree(levels[f"round-{k}"])["method"]["keep"] for k in range(3)]
    steps = len(toy.Batches()) * toy.RECIPE.epochs
    for number in (1, 2):
        for name, value in met[number * steps].items():
            mask = masks[number].get(name)
            wanted = initial[name] if mask is None else initial[name] * mask
            assert torch.equal(value, wanted), (number, name)
        trained = load_tree(levels[f"round-{number}"])["model"]
        for name, mask in masks[number].items():
            assert torch.equal(trained[name] != 0, mask), "a level has the density of its mask"
    counts = [sum(int(m.sum()) for m in level.values()) for level in masks]
    assert counts == [72, 36, 18]
