"""The budget of a retraining, and what of the recipe reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.data.info import DatasetInfo
from pipeline.study.execution.running import task_of
from pipeline.study.params.load import Params, ParamsError, load_params
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.counts import count_network
from pipeline.training.recipe import Recipe
from pipeline.training.schedules import make_optimizer
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import apply_plan
from stages.finetune import recipe_of

PARAMS = """
study: t
data: {name: digits}
train: {epochs: 10, schedule: {name: multistep, milestones: [80, 120], gamma: 0.1}}
finetune: {train: {epochs: 160, label_smoothing: 0.1, optimizer: {decay_norm_and_bias: false}}}
methods: {dense: {}}
trainings:
  a: {model: {family: small, name: resnet8, width: 8}, method: dense}
prunings:
  p:
    training: a
    granularity: structured
    saliency: magnitude
    target: {rule: macs, value: 0.4}
    finetune: {epochs: EPOCHS, start_from: random}
"""


def load(folder: Path, epochs: str, text: str = PARAMS) -> Params:
    path = folder / "params.yaml"
    path.write_text(text.replace("EPOCHS", epochs))
    return load_params(path)


def halved(params: Params) -> tuple[NetworkSpec, nn.Module]:
    """The network of the study without the second half of every group's channels."""
    network = NetworkSpec.of(params.training("a").model, DatasetInfo("digits", (1, 8, 8), 10))
    model = network.build()
    units = network.units(model)
    keep = {g.name: torch.arange(g.size) < g.size // 2 for g in units.prunable}
    apply_plan(PruningPlan(Granularity.STRUCTURED, keep), model, units)
    return network, model


def recipe(folder: Path, epochs: str, text: str = PARAMS) -> Recipe:
    params = load(folder, epochs, text)
    network, model = halved(params)
    return recipe_of(network, params, "p", model)


def saved(text: str = PARAMS) -> float:
    """Dense MACs over kept MACs."""
    network = NetworkSpec("small", "resnet8", {"width": 8}, DatasetInfo("digits", (1, 8, 8), 10))
    small = NetworkSpec("small", "resnet8", {"width": 4}, network.info)
    dense, pruned = (count_network(n, n.build()).macs for n in (network, small))
    return dense / pruned


def test_epochs_asked_for_are_taken(tmp_path: Path) -> None:
    """Scratch-E: as many epochs as the recipe of the retraining says, its schedule as it is."""
    made = recipe(tmp_path, "160")
    assert (made.epochs, made.schedule.milestones) == (160, (80, 120))


def test_scratch_b_spends_what_dense_training_costs(tmp_path: Path) -> None:
    """160 epochs of the retraining's recipe (not the 10 of the gates), counted on the network."""
    made = recipe(tmp_path, "{match: macs}")
    factor = saved()
    assert factor > 3
    assert made.epochs == round(160 * factor)
    assert made.schedule.milestones == (round(80 * factor), round(120 * factor))


def test_the_cap_bounds_epochs_and_milestones(tmp_path: Path) -> None:
    """Liu et al.: at most double on ImageNet."""
    made = recipe(tmp_path, "{match: macs, cap: 2.0}")
    assert (made.epochs, made.schedule.milestones) == (320, (160, 240))
    assert recipe(tmp_path, "{match: macs, cap: 100}").epochs == round(160 * saved())


@pytest.mark.parametrize(("removed", "epochs"), [(0.1, 177), (0.3, 228), (0.4, 266), (0.5, 320)])
def test_the_fraction_asked_for_as_the_authors_take_it(
    removed: float, epochs: int, tmp_path: Path
) -> None:
    """int(160 / (1 - p)); their program truncates."""
    made = recipe(tmp_path, "{match: target}", PARAMS.replace("value: 0.4", f"value: {removed}"))
    assert made.epochs == epochs
    assert made.schedule.milestones == (round(80 / (1 - removed)), round(120 / (1 - removed)))


def test_the_cap_holds_for_the_fraction_too(tmp_path: Path) -> None:
    assert recipe(tmp_path, "{match: target, cap: 1.5}").epochs == 240


def test_a_reference_is_what_the_budget_is_measured_by(tmp_path: Path) -> None:
    """Gates learn on a wider network than the standard one, whose cost is the budget."""
    text = PARAMS.replace("target: {", "reference: {width: 4}\n    target: {", 1)
    assert recipe(tmp_path, "{match: macs}", text).epochs == 160


def test_the_target_must_be_of_macs(tmp_path: Path) -> None:
    text = PARAMS.replace("rule: macs", "rule: fraction")
    with pytest.raises(ParamsError, match=r"prunings\.p\.finetune\.epochs\.match.*rule: macs"):
        load(tmp_path, "{match: target}", text)
    with pytest.raises(ParamsError, match="cap"):
        load(tmp_path, "{match: macs, cap: 0.5}")


def test_smoothing_and_spared_decay_reach_the_retraining(tmp_path: Path) -> None:
    params = load(tmp_path, "160")
    network, model = halved(params)
    made = recipe_of(network, params, "p", model)
    assert params.recipe("a").label_smoothing == 0.0
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    plain = task_of(network).loss(model, (x, y))[0]
    smoothed = task_of(network, made.label_smoothing).loss(model, (x, y))[0]
    uniform = -model(x).log_softmax(1).mean()
    torch.testing.assert_close(smoothed, 0.9 * plain + 0.1 * uniform)
    groups = make_optimizer(model, made).param_groups
    spared = {id(p) for g in groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert spared == {id(p) for p in model.parameters() if p.ndim < 2}
    assert spared
