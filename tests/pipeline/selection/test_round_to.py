"""`round_to` counts channels, also where one unit is several of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.measure.count import count, structured_cost
from pipeline.selection.saliency import group_norm
from pipeline.selection.select import Context, channels_per_unit, select
from pipeline.selection.target import Target
from pipeline.units.groups import Granularity
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import Net, conv

IMAGE = torch.zeros(1, 3, 8, 8)
WORDS = torch.zeros(1, 6, dtype=torch.long)


def normalised() -> nn.Module:
    """Eight channels are one unit."""
    return nn.Sequential(conv(3, 32), nn.GroupNorm(4, 32), nn.ReLU(), conv(32, 5))


def grouped() -> nn.Module:
    """A channel of every group of the second convolution is one unit: four."""
    return nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32, groups=4), nn.ReLU(), conv(32, 5))


def two_steps() -> nn.Module:
    """Four channels are one unit, so pairs of them are kept."""
    return nn.Sequential(conv(3, 32), nn.GroupNorm(8, 32), nn.ReLU(), conv(32, 5))


def encoder() -> nn.Module:
    """Four heads of eight features."""
    import transformers as hf

    config = hf.BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=64,
        max_position_embeddings=8,
    )
    return Net(lambda n, x: n.bert(x).last_hidden_state, bert=hf.BertModel(config))


CASES: list[tuple[Callable[[], nn.Module], Tensor, set[int]]] = [
    (normalised, IMAGE, {8}),
    (grouped, IMAGE, {4}),
    (two_steps, IMAGE, {4}),
    (encoder, WORDS, {8, 1}),
]


@pytest.mark.parametrize(("build", "example", "widths"), CASES)
def test_half_of_the_channels_in_multiples_of_eight(
    build: Callable[[], nn.Module], example: Tensor, widths: set[int]
) -> None:
    torch.manual_seed(0)
    model = build()
    units = trace_units(model, example)
    channels = channels_per_unit(units)
    assert widths <= set(channels.values())
    scores, target = group_norm(model, units), Target(rule="fraction", value=0.5, round_to=8)
    plan = select(scores, Granularity.STRUCTURED, target, None, Context(channels=channels))
    kept = {name: int(mask.sum()) * channels[name] for name, mask in plan.keep.items()}
    assert all(number % 8 == 0 for number in kept.values())
    least = select(scores, Granularity.STRUCTURED, target.model_copy(update={"round_to": 1}))
    for name, mask in least.keep.items():  # rounded up, and no further than needed
        assert 0 <= kept[name] - int(mask.sum()) * channels[name] < 8
    assert plan.kept < plan.total


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize(("build", "example", "widths"), CASES)
def test_a_budget_of_macs_is_reached(
    build: Callable[[], nn.Module], example: Tensor, widths: set[int], fill: bool
) -> None:
    torch.manual_seed(0)
    model = build()
    units, dense = trace_units(model, example), count(model, example).macs
    cost, context = (
        structured_cost(model, example, units, "macs"),
        Context(channels=channels_per_unit(units)),
    )
    target = Target(rule="macs", value=0.4, round_to=8, fill=fill)
    plan = select(group_norm(model, units), Granularity.STRUCTURED, target, cost, context)
    shrink(plan, model, units)
    left = count(model, example).macs
    assert cost(plan) == left <= 0.6 * dense
    for name, mask in plan.keep.items():
        assert int(mask.sum()) * context.channels[name] % 8 == 0
