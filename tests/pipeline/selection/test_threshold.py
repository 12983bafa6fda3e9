"""Exact counts with ties in any memory format; ERK allocation of a one-shot pruning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.selection.criteria import erdos_renyi
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.selection.threshold import keep_all_but
from pipeline.units.groups import Granularity

FORMATS = (torch.contiguous_format, torch.channels_last)


def tied(form: torch.memory_format) -> dict[str, Tensor]:
    values = torch.tensor([0.0, 1.0, 0.0, 2.0] * 12).view(4, 3, 2, 2)
    return {"a": values.to(memory_format=form), "b": torch.zeros(3)}


@pytest.mark.parametrize("count", [1, 7, 23, 26, 30, 50])
def test_ties_in_channels_last(count: int) -> None:
    plain, last = (keep_all_but(tied(form), count) for form in FORMATS)
    assert sum(int((~m).sum()) for m in last.values()) == count
    for name in plain:
        assert torch.equal(plain[name], last[name])


def scores() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"stem": (8, 3, 3, 3), "wide": (64, 64, 3, 3), "point": (64, 64, 1, 1), "fc": (10, 64)}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.9, 0.98])
def test_erk_leaves_layers_their_densities(fraction: float) -> None:
    saliency = scores()
    target = Target(rule="fraction", value=fraction, scope="erk")
    plan = select(saliency, Granularity.UNSTRUCTURED, target)
    assert plan.total - plan.kept == int(round(fraction * plan.total, 6))
    shapes = {name: tuple(s.shape) for name, s in saliency.items()}
    for name, density in erdos_renyi(shapes, 1 - fraction).items():
        mask = plan.keep[name]
        assert abs(int(mask.sum()) - density * mask.numel()) <= len(shapes)
        if not mask.all():
            assert saliency[name][mask].min() >= saliency[name][~mask].max()


def test_erk_is_of_weights() -> None:
    target = Target(rule="fraction", value=0.5, scope="erk")
    with pytest.raises(ValueError, match="erk needs rule: fraction and unstructured units"):
        select({"g": torch.rand(8)}, Granularity.STRUCTURED, target)
