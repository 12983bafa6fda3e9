"""HSPG in a training: phases, penalty schedule, presets, logged values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.hspg import PRESETS, HSPGConfig, HSPGMethod, is_linear, penalty_at
from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model, model_spec
from pipeline.training.phases import EpochStats, Phase
from pipeline.training.recipe import Recipe
from pipeline.units.groups import ChannelGroup, Units
from pipeline.units.trace import trace_units
from tests.methods.oto.oto_traces import piece, plain_group


def test_linear_groups_are_told_from_convolutions_and_heads() -> None:
    weights = {"fc": torch.zeros(4, 2), "conv": torch.zeros(4, 2, 1, 1), "q": torch.zeros(8, 2)}
    heads = ChannelGroup("q", 4, (piece("q", torch.arange(8).view(2, 4).T),))
    assert is_linear(plain_group("fc", 4, ("fc",)), weights)
    assert not is_linear(plain_group("conv", 4, ("conv",)), weights)
    assert not is_linear(heads, weights)


def test_penalty_schedule_ends_at_zero() -> None:
    config = HSPGConfig(penalty=1e-3, penalty_milestones=(35, 40, 45, 50))
    got = [penalty_at(config, e) for e in (0, 34, 35, 40, 45, 50)]
    assert got == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 0.0], rel=1e-9, abs=0)


def test_phases_share_one_schedule() -> None:
    method = HSPGMethod(HSPGConfig(warmup_fraction=0.25))
    assert method.phases(Recipe(epochs=20)) == (
        Phase("warmup", 5),
        Phase("half-space", 15, lr_epoch=5),
    )
    assert method.phases(Recipe(epochs=0)) == (Phase("half-space", 0),)
    assert method.phases(Recipe(epochs=2)) == (Phase("half-space", 2),)


def test_the_epoch_end_logs_sparsity_and_steps_the_penalty() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0.0, 0.0
    method = HSPGMethod(HSPGConfig(penalty=0.1, penalty_milestones=(1,), epsilon_linear=0.5))
    method.prepare(net, Units((), (plain_group("0", 4, ("0.weight", "0.bias")),)))
    optimizer = method.optimizer(net, Phase("half-space", 2), Recipe(epochs=2))
    assert optimizer.units["epsilon"].tolist() == [0.5]
    stats = EpochStats(0, 0, {})
    assert method.end_epoch(net, stats) is False
    omega = torch.cat([net[0].weight, net[0].bias[:, None]], 1).norm(dim=1).sum().item()
    assert stats.logged == pytest.approx({"group_sparsity": 0.25, "omega": omega})
    assert optimizer.param_groups[0]["penalty"] == pytest.approx(0.01)


def test_split_norms_make_8448_groups_of_vgg16_bn() -> None:
    """Separate groups for convolution (with bias) and BatchNorm; the linear layers have no norm."""
    model = build_model("vgg", "vgg16_bn", DatasetInfo("cifar10", (3, 32, 32), 10))
    units = trace_units(model, torch.randn(1, 3, 32, 32), model_spec("vgg", "vgg16_bn").never_prune)
    counts = {}
    for split in (False, True):
        method = HSPGMethod(HSPGConfig(split_norms=split))
        method.prepare(model, units)
        rows = method.rows(model)
        norms = [g for g in rows.groups if g.name.endswith("(norms)")]
        entries = sum(p.numel() for p in rows.params)
        counts[split] = rows.count - 1024, sum(g.size for g in norms), entries
    whole = counts[False][2]
    assert counts == {False: (4224, 0, whole), True: (8448, 4224, whole)}
    assert "split_norms" not in HSPGConfig().model_dump(mode="json")


def test_a_split_channel_goes_only_if_both_halves_are_zero() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    units = trace_units(net, torch.randn(1, 1, 2, 2), ("2",))
    method = HSPGMethod(HSPGConfig(penalty=30.0, split_norms=True, warmup_epochs=0))
    method.prepare(net, units)
    optimizer = method.optimizer(net, Phase("half-space", 1), Recipe(epochs=1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 10.0]).view(2, 1, 1, 1))
        net[1].bias.zero_()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # lr * penalty = 3: projects norms of length 1 and the first filter
    assert net[1].weight.tolist() == [0.0, 0.0]
    (scores,) = method.saliency(net, units).values()
    assert (scores == 0).tolist() == [True, False]
    assert method.permanently_zero(net) is None


def test_every_preset_is_a_valid_configuration() -> None:
    assert len(PRESETS) == 9
    for preset in PRESETS.values():
        recipe = Recipe.model_validate(preset["train"])
        method = HSPGMethod(HSPGConfig.model_validate(preset["method"]))
        assert sum(p.epochs for p in method.phases(recipe)) == recipe.epochs
    assert PRESETS["vgg16-bn-cifar10"]["method"]["penalty"] == 5e-4
