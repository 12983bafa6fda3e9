"""Pruning at initialisation: exact sparsity, a fixed mask, SynFlow's rounds, model untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from methods.init_pruning import InitPruning, InitPruningConfig
from pipeline.data.info import DatasetInfo
from pipeline.registry import method_spec
from pipeline.selection.criteria import snip
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.training.loop.checkpoint import clone_state
from pipeline.training.phases import Phase, StepContext
from pipeline.training.tasks.question_answering import QuestionAnswering
from pipeline.training.tasks.task import Classification, Task
from pipeline.units.groups import Units
from tests.pipeline.training import toy
from tests.squad_world import TINY, windows

IMAGES = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Seen = Sequence[tuple[Tensor, Tensor]]


class Batches:
    """The batches that the loop passes to `prepare`."""

    def __init__(self, seen: Seen, task: Task) -> None:
        self.seen, self.task = seen, task

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.seen)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.task.loss(model, batch)[0]


BATCHES = Batches([(IMAGES, torch.arange(8) % 3)], Classification(3))
SPANS = torch.tensor([[9, 10], [12, 12], [10, 15]])


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
    method.prepare(net, units, BATCHES)
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
    """At this density one round empties a layer; 100 rounds, the default, do not."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(n, m, bias=False) for n, m in ((36, 4), (4, 60), (60, 3))))
    units = Units(tuple(f"{k}.weight" for k in range(3)), ())
    batches = Batches([(torch.randn(2, 36), torch.tensor([0, 1]))], Classification(3))

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
        BATCHES.loss(net, BATCHES.seen[0]).backward()
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
    with pytest.raises(ValueError, match="criterion: grasp needs a training batch"):
        prepared_on(Batches([], Classification(3)), net, units, criterion="grasp")


def prepared_on(batches: Batches, net: nn.Module, units: Units, **settings: object) -> InitPruning:
    method = InitPruning(InitPruningConfig(**settings))
    torch.manual_seed(5)  # dropout
    method.prepare(net, units, batches)
    return method


def reader(**more: object) -> tuple[nn.Module, Units]:
    """A tiny BERT that answers questions."""
    torch.manual_seed(0)
    sizes = {**TINY, "freeze_embeddings": True, **more}
    network = NetworkSpec("bert", "encoder_qa", sizes, DatasetInfo("squad", (3, 32), 2))
    net = network.build()
    return net, network.units(net)


def asked(targets: Tensor = SPANS) -> Batches:
    return Batches([(windows(), targets)], QuestionAnswering())


@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_question_answering(criterion: str, pooler: bool) -> None:
    net, units = reader(pooler=pooler)
    before = copy.deepcopy(net.state_dict())
    method = prepared_on(asked(), net, units, criterion=criterion, sparsity=0.5)
    assert method.plan().kept == method.plan().total // 2
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    moved = prepared_on(asked(SPANS + 3), net, units, criterion=criterion, sparsity=0.5)
    assert moved.plan().digest() != method.plan().digest()  # the loss uses the answer spans
    if pooler and criterion == "snip":  # this task does not use the pooler
        assert not method.keep["bert.pooler.dense.weight"].any()


def test_snip_ranks_by_the_loss_of_the_task() -> None:
    net, units = reader(dropout=0.0)
    method = prepared_on(asked(), net, units, criterion="snip", sparsity=0.7)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(batch[0]).masked_fill(batch[0][:, 1, None] == 0, -1e30)
        both = [nn.functional.cross_entropy(logits[:, k], batch[1][:, k]) for k in (0, 1)]
        return (both[0] + both[1]) / 2

    scores = snip(net, units.weights, asked().seen, loss)
    worst = min(scores[n][keep].min() for n, keep in method.keep.items() if keep.any())
    best = max(scores[n][~keep].max() for n, keep in method.keep.items() if not keep.all())
    assert worst >= best * (1 - 1e-4)


def test_grasp_divides_the_logits_by_the_temperature() -> None:
    net, units = net_and_units()

    class Counted(Batches):
        largest = 0.0

        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            self.largest = float(model(batch[0]).detach().abs().max())
            return super().loss(model, batch)

    seen = {t: Counted(BATCHES.seen, BATCHES.task) for t in (1.0, 200.0)}
    for temperature, batches in seen.items():
        prepared_on(batches, net, units, criterion="grasp", temperature=temperature)
    assert seen[1.0].largest == pytest.approx(200 * seen[200.0].largest, rel=1e-4)


def test_synflow_refuses_tokens() -> None:
    net, units = reader()
    with pytest.raises(ValueError, match="criterion: synflow .* tokens are no numbers"):
        prepared_on(asked(), net, units, criterion="synflow")


def test_biases_are_ranked_with_the_weights() -> None:
    net, units = net_and_units()
    plan = prepared(net, units, sparsity=0.75, biases=True).plan()
    assert plan.total == 72 + 8 + 576 + 8 + 96 + 3
    assert plan.kept == plan.total // 4
    assert set(plan.keep) == {*units.weights, "0.bias", "3.bias", "6.bias"}
    with torch.no_grad():
        for name in ("0.bias", "3.bias", "6.bias"):
            net.get_parameter(name).zero_()
    kept = prepared(net, units, sparsity=0.75, biases=True).plan().keep
    assert not any(kept[name].any() for name in kept if name.endswith("bias")), "they score 0"
    with pytest.raises(ValueError, match=r"biases: true ranks all parameters together"):
        InitPruningConfig(biases=True, allocation="erk")


def test_another_draw_is_trained_under_the_mask_of_the_scored_one(tmp_path: Path) -> None:
    """As in the program of SNIP's authors; removed biases stay removed, too."""
    states = {}
    for another in (False, True):
        config = InitPruningConfig(sparsity=0.5, biases=True, another_draw=another)
        method = InitPruning(config)
        job = toy.job(method, fresh=lambda _: clone_state(toy.network(seed=1)))
        toy.train(tmp_path / str(another), job)
        states[another] = method.plan(), job.model.state_dict()
    (plan, scored), (same, drawn) = states[False], states[True]
    assert plan.digest() == same.digest()
    assert not torch.equal(scored["0.weight"], drawn["0.weight"])
    assert not all(mask.all() for mask in plan.keep.values())
    for name, mask in plan.keep.items():
        assert not drawn[name][~mask].any()
