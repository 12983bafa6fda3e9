"""SFW-Init minimises the loss of any task, including question answering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.sfw import SFWConfig, SFWMethod
from methods.sfw.constraints import Unconstrained
from methods.sfw.learned_scale import learn_scales
from pipeline.data.info import DatasetInfo
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.training.tasks.question_answering import QuestionAnswering
from tests.methods.sfw.sfw_toys import Loss, ToyBatches, toy_batches
from tests.squad_world import TINY, windows

SPEC = NetworkSpec("bert", "encoder_qa", TINY, DatasetInfo("squad", (3, 32), 2))
Windows = tuple[Tensor, Tensor]


class Questions:
    """Batches of windows with the loss of the task."""

    def __init__(self, seen: Sequence[Windows]) -> None:
        self.seen = seen

    def __iter__(self) -> Iterator[Windows]:
        return iter(self.seen)

    def loss(self, model: nn.Module, batch: Windows) -> Tensor:
        return QuestionAnswering().loss(model, batch)[0]


def questions(padded_to: int | None = None) -> Questions:
    """Batches of 3 windows of 32 tokens and of 2 of 16 tokens, or all padded to one length."""
    seen = []
    for seed, (count, length) in enumerate(((3, 32), (2, 16), (2, 16), (3, 32))):
        inputs = windows(count, length, seed)
        behind = (padded_to or length) - length
        target = torch.tensor([[6, 7], [5, 5], [7, 9]])[:count] + seed % 2
        seen.append((nn.functional.pad(inputs, (0, behind)), target))
    return Questions(seen)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return SPEC.build().eval()


def scales(batches: Questions) -> dict[str, float]:
    network = encoder()
    sets = {name: Unconstrained() for name, _ in network.named_parameters()}
    return learn_scales(network, sets, batches, lr=0.1, iterations=6)


def test_windows_of_several_lengths_give_the_scales_of_padded_ones() -> None:
    """Tokens after a window are padding; two batches are weighted by their number of windows."""
    found, padded = scales(questions()), scales(questions(padded_to=32))
    assert found == pytest.approx(padded, abs=1e-5)
    assert max(abs(s - 1.0) for s in found.values()) > 2e-3


def test_another_loss_learns_other_scales() -> None:
    def learned(loss: Loss) -> list[float]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
        sets = {name: Unconstrained() for name, _ in network.named_parameters()}
        batches = ToyBatches(toy_batches(3), loss)
        return list(learn_scales(network, sets, batches, lr=0.1, iterations=5).values())

    assert learned(cross_entropy) != learned(lambda out, y: -cross_entropy(out, y))


def test_the_method_initialises_an_encoder() -> None:
    network = encoder()
    config = SFWConfig(sfw_init=True, sfw_init_iterations=3)
    method = SFWMethod(config)
    method.prepare(network, SPEC.units(network), questions())
    plain, other = SFWMethod(config.model_copy(update={"sfw_init": False})), encoder()
    plain.prepare(other, SPEC.units(other))
    for (name, mine), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        assert bool(mine.isfinite().all())
        assert bool(method.sets[name].contains(mine, 1e-5)), name
        if mine.norm() and "dense.weight" in name and "pooler" not in name:
            assert not torch.equal(mine, theirs), name
