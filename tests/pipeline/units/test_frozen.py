"""Frozen batch norms: nothing goes behind buffers, everything behind frozen parameters."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pipeline.units.frozen import is_frozen_norm, with_frozen_parameters
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.rows import Rows
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, outputs, random_plan, randomise_bn


def network(name: str = "resnet18") -> nn.Module:
    from torchvision.models import get_model
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    return cast(nn.Module, get_model(name, weights=None, norm_layer=FrozenBatchNorm2d))


def thawed() -> nn.Module:
    return with_frozen_parameters(network())


@pytest.fixture
def example() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_shift_that_is_a_buffer_keeps_its_channels(example: Tensor) -> None:
    groups = trace_units(network(), example).by_name()
    assert not any(g.prunable for g in groups.values())
    assert "bn1.bias is a buffer" in groups["layer1.0.conv1"].reason


def test_as_parameters_they_go_like_those_of_a_batch_norm(example: Tensor) -> None:
    units = trace_units(thawed(), example)
    assert sum(g.size for g in units.prunable) == 2880
    tensors = {s.tensor for s in units.by_name()["layer1.0.conv1"].slices}
    assert {f"layer1.0.bn1.{n}" for n in ("weight", "bias", "running_mean")} < tensors


@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_laws(fraction: float, example: Tensor) -> None:
    units = trace_units(thawed(), example)
    plan = random_plan(units, fraction, torch.Generator().manual_seed(3))
    for dtype in (torch.float64, torch.float32):
        assert_laws(thawed, example, units, plan, dtype)


def test_laws_of_dead_branches(example: Tensor) -> None:
    units = trace_units(thawed(), example)
    inner = [g for g in units.prunable if ".conv1" in g.name]
    keep = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in inner}
    assert_laws(thawed, example, units, PruningPlan(Granularity.STRUCTURED, keep))


def test_nothing_else_changes(example: Tensor) -> None:
    before = randomise_bn(network(), torch.Generator().manual_seed(1))
    after = thawed()
    after.load_state_dict(before.state_dict(), strict=True)
    assert torch.equal(*(outputs(m, example)[0] for m in (before, after)))
    trained = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (before, after)]
    assert trained[0] == trained[1]
    with_frozen_parameters(after)
    assert torch.equal(*(outputs(m, example)[0] for m in (before, after)))


def test_a_frozen_shift_is_measured_and_not_trained(example: Tensor) -> None:
    """So a channel is zero only if its shift is, and the rule `zeros` stays exact."""
    model = thawed()
    units = trace_units(model, example)
    parameters = dict(model.named_parameters())
    measured = Rows(parameters, units.prunable, frozen=True)
    assert any(p is parameters["layer1.0.bn1.bias"] for p in measured.params)
    assert all(p.requires_grad for p in Rows(parameters, units.prunable).params)


def test_which_layers_are_meant() -> None:
    assert is_frozen_norm(network().bn1)  # type: ignore[arg-type]
    assert is_frozen_norm(thawed().bn1)  # type: ignore[arg-type]
    for other in (nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.Linear(2, 2), nn.Identity()):
        assert not is_frozen_norm(other)
