"""`train.compact`: permanently zero channels are not computed, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline import registry
from pipeline.data.info import DatasetInfo
from pipeline.measure.count import structured_cost
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.training.loop import fit as loop
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.job import Job
from pipeline.training.options.compact import Compact
from pipeline.training.recipe import Recipe
from pipeline.units.enforce import enforce
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from tests.conformance import test_delivered as delivered
from tests.conformance.test_delivered import DEAD, INFO
from tests.conformance.test_methods import RECIPE, EightSteps, Stopped, make_job
from tests.pipeline.training.toy import Recorder, same
from tests.pipeline.units.laws import random_plan, randomise_bn

NETWORKS = {**delivered.NETWORKS, "mlp": NetworkSpec("mlp", "mlp", {"widths": (64, 64)}, INFO)}
IMAGES = torch.randn(6, *INFO.input_shape, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(6) % 5

# --- one pass -----------------------------------------------------------------------------------


def masked(name: str) -> tuple[nn.Module, Any, PruningPlan]:
    """A network in double precision, half of its channels zero."""
    torch.manual_seed(0)
    spec = NETWORKS[name]
    model = randomise_bn(spec.build(), torch.Generator().manual_seed(1)).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it would draw other numbers for fewer features
    units = spec.units(model)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(2))
    if name in DEAD:  # nothing is left of a branch
        gone = torch.zeros_like(plan.keep[DEAD[name]])
        plan = PruningPlan(plan.granularity, {**plan.keep, DEAD[name]: gone})
    enforce(plan, model, units)
    return model, units, plan


def passes(model: nn.Module, through: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients; the running statistics move."""
    model.zero_grad()
    loss = F.cross_entropy(through(IMAGES), LABELS)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_is_that_of_the_masked_network(name: str, training: bool) -> None:
    model, units, plan = masked(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train(training)
    loss, gradients = passes(model, model)
    moved = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    small = Compact(model, units)
    small.remove(plan)
    again, picked = passes(model, small)
    torch.testing.assert_close(again, loss, rtol=1e-10, atol=0)
    assert picked.keys() == gradients.keys()
    dead = Dead(model, units, plan)
    for key, gradient in gradients.items():
        ours, theirs = (dead.alive(key, g) for g in (picked[key], gradient))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
        assert picked[key].stride() == dict(model.named_parameters())[key].stride()
        assert not dead.own(key, picked[key]).any()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(dead.alive(key, value), dead.alive(key, moved[key]))


class Dead:
    """Which entries of a tensor belong to dead channels."""

    def __init__(self, model: nn.Module, units: Any, plan: PruningPlan) -> None:
        self.masks = {
            k: torch.zeros_like(v, dtype=torch.bool) for k, v in model.state_dict().items()
        }
        for group in units.groups:
            gone = ~plan.keep[group.name] if group.name in plan.keep else None
            for piece in group.slices if gone is not None and gone.any() else ():
                if piece.role != "consumer":
                    mask = self.masks[piece.tensor]
                    mask.index_fill_(piece.dim, piece.index[gone].flatten(), True)

    def own(self, name: str, x: Tensor) -> Tensor:
        return x[self.masks[name]]

    def alive(self, name: str, x: Tensor) -> Tensor:
        return x[~self.masks[name]]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_plan_keeps(name: str) -> None:
    """Count MACs while it runs, and compare with the network after surgery."""
    model, units, plan = masked(name)
    small = Compact(model, units).eval()
    example = IMAGES[:1]

    def macs() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            small(example)
        return counter.get_total_flops() // 2

    whole = macs()
    kept = dict(plan.keep)
    if name in DEAD:  # the branch keeps a channel, so that every layer stays
        kept[DEAD[name]] = torch.arange(len(kept[DEAD[name]])) == 0
    small.remove(plan)
    cost = structured_cost(model, example, units, "macs")
    assert macs() == cost(PruningPlan(plan.granularity, kept))
    small.remove(None)
    assert macs() == whole


def test_channels_that_leave_a_constant_are_computed() -> None:
    """The bias that surgery would change is the optimizer's."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(IMAGES[0].numel(), 8), nn.Sigmoid(), nn.Linear(8, 6)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(6, 5)).double()
    units = trace_units(model, IMAGES[:1])
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    enforce(plan, model, units)
    want, gradients = passes(model, model)
    small = Compact(model, units)
    small.remove(plan)
    again, picked = passes(model, small)
    torch.testing.assert_close(again, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(picked["3.bias"], gradients["3.bias"] * plan.keep["3"])
    assert small.small is not None
    assert small.small[1].out_features == 8  # type: ignore[union-attr, index]
    assert small.small[5].in_features == 3  # type: ignore[union-attr, index]


def test_little_is_not_worth_it() -> None:
    model, units, plan = masked("vgg_small")
    few = {name: torch.ones_like(mask) for name, mask in plan.keep.items()}
    next(iter(few.values()))[0] = False
    small = Compact(model, units)
    small.remove(PruningPlan(plan.granularity, few))
    assert small.small is None


# --- a training ---------------------------------------------------------------------------------

# channels die in the second of four epochs
OPTIONS: dict[str, dict[str, Any]] = {
    "hspg": {"penalty": 1.0, "epsilon": 0.5, "warmup_epochs": 1, "momentum": 0.5},
    "dhspg": {"penalty": 4.0, "ceiling": 10.0, "epsilon": 0.9, "target_group_sparsity": 0.5},
    "hesso": {"start_fraction": 0.1, "pruning_fraction": 0.2, "periods": 2},
    "hesso_cric": {"start_fraction": 0.1, "cycle_fraction": 0.2, "cycles": 1},
    "early_bird": {"length": 2, "epsilon": 1.0, "continue_training": True},
}
Batches = partial(EightSteps, dtype=torch.float64)


def job(name: str, compact: bool, batches: EightSteps | None = None, **recipe: Any) -> Job:
    """In double precision, so that only rounding may differ."""
    made = make_job(name, batches or Batches())  # type: ignore[arg-type]
    spec = registry.method_spec(name)
    torch.manual_seed(0)
    info = DatasetInfo("toy", (1, 8, 8), 3)
    model = registry.build_model("small", "resnet8", info, {"width": 4}).double()
    return replace(
        made,
        model=model,
        units=trace_units(model, torch.randn(1, 1, 8, 8).double(), ("linear",)),
        method=spec.build(spec.config(**OPTIONS.get(name, {}))),
        recipe=RECIPE.model_copy(update={"compact": compact, **recipe}),
        validation=list(Batches().epoch(1000)),
    )


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of channels that the training skips, after each query of the method."""
    found: list[int] = []

    class Watched(Compact):
        def remove(self, plan: PruningPlan | None) -> None:
            super().remove(plan)
            found.append(self.plan.total - self.plan.kept if self.plan else 0)

    monkeypatch.setattr("pipeline.training.loop.state.Compact", Watched)
    return found


def train(made: Job, folder: Path) -> list[dict[str, Any]]:
    return loop.fit(made, CheckpointFolder(folder, "test"), Recorder())


@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_ends_with_the_same_weights(
    name: str, tmp_path: Path, left_out: list[int]
) -> None:
    plain, small = job(name, False), job(name, True)
    rows, again = train(plain, tmp_path / "plain"), train(small, tmp_path / "small")
    assert left_out[-1] >= 10
    for key, value in dict(plain.model.named_parameters()).items():
        other = dict(small.model.named_parameters())[key]
        assert torch.equal(value == 0, other == 0)
        torch.testing.assert_close(other, value, rtol=1e-7, atol=1e-9)
    for one, other in zip(rows, again, strict=True):
        assert one["values"] == pytest.approx(other["values"], rel=1e-7)


@pytest.mark.parametrize("name", ["dense", "sfw", "imp", "slimming", "gates"])
def test_methods_without_dead_channels_train_as_ever(
    name: str, tmp_path: Path, left_out: list[int]
) -> None:
    plain, small = job(name, False), job(name, True)
    train(plain, tmp_path / "plain")
    train(small, tmp_path / "small")
    assert not any(left_out)
    assert same(plain.model, small.model)


@pytest.mark.parametrize("last", [16, 21])
@pytest.mark.parametrize("name", ["hspg", "hesso"])
def test_a_stopped_training_goes_on_to_the_same_bits(
    name: str, last: int, tmp_path: Path, left_out: list[int]
) -> None:
    """Within an epoch the skipped channels do not change, even if more are zero."""
    every = {"checkpoint_steps": 3}
    whole = job(name, True, **every)
    train(whole, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(job(name, True, Batches(last), **every), tmp_path / "again")
    again = job(name, True, **every)
    train(again, tmp_path / "again")
    assert same(whole.model, again.model)


def test_what_may_come_back_is_not_left_out(tmp_path: Path, left_out: list[int]) -> None:
    """HSPG's warm-up is plain training, so zeros are not permanent."""
    made = job("hspg", True, epochs=2)
    spec = registry.method_spec("hspg")
    made = replace(made, method=spec.build(spec.config(warmup_epochs=2)))
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.zero_()
    train(made, tmp_path)
    assert left_out[:3] == [0, 0, 0]  # then begins a half-space stage of no epochs


def test_it_excludes_the_compiler() -> None:
    with pytest.raises(ValueError, match=r"compact: true.*compile: true"):
        Recipe(epochs=1, compact=True, compile=True)


def test_records_of_other_trainings_do_not_know_it() -> None:
    assert "compact" not in RECIPE.model_dump()
