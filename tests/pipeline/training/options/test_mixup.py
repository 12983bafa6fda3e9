"""Mixup: the blend and its loss in closed form; a resumed training draws the same blends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.study.params.load import ParamsError, load_params
from pipeline.training.loop.checkpoint import CheckpointFolder
from pipeline.training.loop.fit import fit
from pipeline.training.options.mixup import mixed
from pipeline.training.recipe import Recipe
from pipeline.training.tasks.task import Classification
from tests.pipeline.training.toy import RECIPE, Batches, Killed, Recorder, job, same, train

ALPHA = 0.2
MIXED = RECIPE.model_copy(update={"mixup": ALPHA, "label_smoothing": 0.1, "checkpoint_steps": 1})


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 4, 4, generator=g), torch.arange(n) % 5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.floats(0.05, 4), st.integers(0, 2**31), st.integers(0, 10**6))
def test_every_image_is_blended_with_one_of_the_batch(
    n: int, alpha: float, seed: int, step: int
) -> None:
    images = torch.arange(1.0, n + 1).view(n, 1, 1, 1)  # an image says which it is
    labels = torch.arange(n)
    blend, first, second, weight = mixed((images, labels), alpha, seed, step)
    w = float(weight[0])
    assert 0.0 <= w <= 1.0
    assert torch.equal(weight, torch.full((n,), w))
    assert torch.equal(first, labels)
    assert sorted(second.tolist()) == labels.tolist()
    expected = w * (first + 1) + (1 - w) * (second + 1)
    assert torch.allclose(blend.flatten(), expected, atol=1e-5)


def test_the_weights_are_beta_distributed() -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)) of Beta(alpha, alpha)."""
    for alpha in (0.2, 1.0):
        weights = torch.tensor([float(mixed(batch(2), alpha, 0, s)[3][0]) for s in range(2000)])
        variance = 1 / (4 * (2 * alpha + 1))
        assert weights.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 2000))
        assert weights.var().item() == pytest.approx(variance, rel=0.1)


def test_a_function_of_seed_and_step_alone() -> None:
    images, labels = batch()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = mixed((images, labels), ALPHA, 3, 7)
    assert torch.equal(torch.get_rng_state(), before)
    again = mixed((images, labels), ALPHA, 3, 7)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    for other in ((3, 8), (4, 7)):
        assert not torch.equal(mixed((images, labels), ALPHA, *other)[0], one[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_in_closed_form(smoothing: float) -> None:
    """Two classes, logits (x, 0): the smoothed cross entropy of class k is
    softplus(x) - x (1 - e/2) for k = 0 and softplus(x) - x e/2 for k = 1."""

    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(), torch.zeros(len(x))], 1)

    x, w = torch.tensor([2.0, -1.0, 0.5]), 0.3
    first, second = torch.tensor([0, 1, 0]), torch.tensor([1, 1, 0])
    task = Classification(2, smoothing)
    loss, sums = task.loss(Head(), (x, first, second, torch.full((3,), w)))

    def entropy(x: float, label: int) -> float:
        share = smoothing / 2
        return math.log1p(math.exp(x)) - x * (1 - share if label == 0 else share)

    pairs = zip(x.tolist(), first.tolist(), second.tolist(), strict=True)
    expected = [w * entropy(v, a) + (1 - w) * entropy(v, b) for v, a, b in pairs]
    assert loss.item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    # best classes 0, 1, 0: the first is right by its share, the others in both labels
    assert float(sums["top1"]) == pytest.approx(w + 2, abs=1e-6)


def test_a_blend_of_an_image_with_itself_has_the_plain_loss() -> None:
    net, (images, labels) = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), batch()
    task = Classification(5, 0.1)
    plain, sums = task.loss(net, (images, labels))
    both, other = task.loss(net, (images, labels, labels, torch.full((8,), 0.3)))
    torch.testing.assert_close(both, plain)
    torch.testing.assert_close(other["top1"], sums["top1"].float())


class Stopping(Batches):
    """Ends the process before its `stop`-th batch."""

    def __init__(self, stop: int) -> None:
        self.left = stop

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for item in super().epoch(epoch, start_step):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield item


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_training_mixes_as_it_would_have(tmp_path: Path, stop: int) -> None:
    undisturbed, _, curve = train(tmp_path / "whole", job(recipe=MIXED))
    folder = CheckpointFolder(tmp_path / "killed", "x")
    with pytest.raises(Killed):
        fit(job(recipe=MIXED, train=Stopping(stop)), folder, Recorder())
    torch.manual_seed(99)
    model, _, resumed = train(tmp_path / "killed", job(recipe=MIXED))
    assert same(model, undisturbed)
    assert resumed == curve


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    off = RECIPE.model_copy(update={"label_smoothing": 0.1})
    mixing, _, _ = train(tmp_path / "on", job(recipe=MIXED))
    plain, _, _ = train(tmp_path / "off", job(recipe=off))
    assert not same(mixing, plain)


def test_a_batch_in_pieces_is_blended_as_a_whole(tmp_path: Path) -> None:
    """Without BatchNorm and dropout, two halves give the gradients of the whole."""

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Identity(), nn.Identity(), nn.Linear(8, 3)
        )

    ends = [
        train(
            tmp_path / str(n),
            job(recipe=MIXED.model_copy(update={"accumulation": n}), model=net()),
        )[0]
        for n in (1, 2)
    ]
    for a, b in zip(*(end.parameters() for end in ends), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_part_of_the_recipe_but_absent_while_off() -> None:
    assert "mixup" not in Recipe(epochs=1).model_dump(mode="json")
    assert Recipe(epochs=1, mixup=0.2).model_dump(mode="json")["mixup"] == 0.2
    with pytest.raises(ValueError, match="mixup"):
        Recipe(epochs=1, mixup=-0.1)


def test_questions_cannot_be_blended(tmp_path: Path) -> None:
    study = Path(__file__).parents[4] / "studies/oto-squad/params.yaml"
    text = study.read_text()
    (tmp_path / "params.yaml").write_text(text.replace("\ntrain:\n", "\ntrain:\n  mixup: 0.2\n", 1))
    with pytest.raises(ParamsError, match=r"train\.mixup: blends images; question_answering has"):
        load_params(tmp_path / "params.yaml")
