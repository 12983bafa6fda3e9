"""Dense: trains with the recipe, ranks weights by magnitude."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.registry import method_spec
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Granularity, Units


def test_registered_and_prunes_nothing() -> None:
    spec = method_spec("dense")
    dense = spec.build(spec.config())
    assert dense.granularity is Granularity.UNSTRUCTURED
    assert dense.plan() is None
    assert dense.state_dict() == {}
    (phase,) = dense.phases(Recipe(epochs=3))
    assert (phase.epochs, phase.start_from, phase.lr_epoch) == (3, "current", 0)


def test_saliency_is_the_magnitude_of_the_named_weights_only() -> None:
    spec = method_spec("dense")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-3.0, 0.0], [0.5, 2.0]]))
    saliency = spec.build(spec.config()).saliency(model, Units(("0.weight",), ()))
    assert list(saliency) == ["0.weight"]
    assert saliency["0.weight"].tolist() == [[3.0, 0.0], [0.5, 2.0]]
    assert not saliency["0.weight"].requires_grad
