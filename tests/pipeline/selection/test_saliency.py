"""Saliencies against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.selection import criteria
from pipeline.selection.saliency import KNOWN, bn_scale, compute, group_norm, magnitude, random
from pipeline.units.groups import Granularity, Units
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import randomise_bn
from tests.pipeline.units.nets import CASES

S, U = Granularity.STRUCTURED, Granularity.UNSTRUCTURED


def traced(name: str) -> tuple[nn.Module, Units]:
    model = randomise_bn(CASES[name].build(), torch.Generator().manual_seed(0))
    return model, trace_units(model, CASES[name].example)


def test_magnitude_covers_convolutions_and_linear_layers() -> None:
    model, units = traced("chain")
    found = magnitude(model, units)
    assert list(found) == ["0.weight", "4.weight", "8.weight"] == list(units.weights)
    assert torch.equal(found["4.weight"], model[4].weight.abs())


@pytest.mark.parametrize("p", [1, 2])
def test_group_norm_runs_over_the_zig_without_statistics(p: int) -> None:
    model, units = traced("chain")
    parts = [model[0].weight.flatten(1), model[0].bias[:, None]]
    producer = torch.cat(parts, 1).norm(p, dim=1)
    parts += [model[1].weight[:, None], model[1].bias[:, None]]
    whole = torch.cat(parts, 1).norm(p, dim=1)
    torch.testing.assert_close(group_norm(model, units, p)["0"], whole)
    torch.testing.assert_close(group_norm(model, units, p, "producer")["0"], producer)
    assert set(group_norm(model, units)) == {"0", "4"}


def test_group_norm_sums_all_positions_of_a_unit() -> None:
    model, units = traced("grouped")
    w, b = model[0].weight, model[0].bias
    rows = torch.cat([w.flatten(1), b[:, None]], 1).square().sum(1)
    want = torch.stack([rows[i::3].sum() for i in range(3)]).sqrt()
    torch.testing.assert_close(group_norm(model, units)["0"], want)


def test_zero_zig_has_no_saliency() -> None:
    model, units = traced("residual")
    for s in units.by_name()["stem"].zig:
        if s.tensor in dict(model.named_parameters()):
            with torch.no_grad():
                model.get_parameter(s.tensor)[2] = 0
    assert group_norm(model, units)["stem"].eq(0).nonzero().flatten().tolist() == [2]


def test_bn_scale_is_the_mean_over_the_group() -> None:
    model, units = traced("residual")
    want = (model.bn.weight.abs() + model.bn2.weight.abs()) / 2
    torch.testing.assert_close(bn_scale(model, units)["stem"], want)
    model, units = traced("chain")
    with pytest.raises(ValueError, match="group '4' has no batch norm scale"):
        bn_scale(model, units)


def test_random_is_positive_and_repeatable() -> None:
    model, units = traced("residual")
    a = random(model, units, S, torch.Generator().manual_seed(1))
    b = compute("random", S, model, units, seed=1)
    assert all(torch.equal(a[k], b[k]) and (a[k] > 0).all() for k in a)
    assert compute("random", U, model, units)["fc.weight"].shape == (4, 6)


def test_compute_by_name() -> None:
    model, units = traced("residual")
    assert set(compute("magnitude", U, model, units)) == set(units.weights)
    assert torch.equal(compute("magnitude", S, model, units)["a"], group_norm(model, units)["a"])
    l1 = compute("l1_norm", S, model, units)["a"]
    assert torch.equal(l1, group_norm(model, units, 1)["a"])
    assert set(compute("bn_scale", S, model, units)) == {"stem", "a"}
    with pytest.raises(ValueError, match="no saliency 'snip' for structured units"):
        compute("snip", S, model, units)
    with pytest.raises(ValueError, match="no saliency 'bn_scale' for unstructured units"):
        compute("bn_scale", U, model, units)


def test_from_data_are_the_criteria_of_the_batches() -> None:
    model, units = traced("residual")
    generator = torch.Generator().manual_seed(2)
    shape = CASES["residual"].example.shape[1:]
    batches = [(torch.randn(6, *shape, generator=generator), torch.arange(6) % 4) for _ in range(2)]
    loss = criteria.classification_loss()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    want = {
        ("taylor", S): criteria.taylor_groups(model, units.prunable, batches, loss),
        ("taylor", U): criteria.taylor(model, units.weights, batches, loss),
        ("snip", U): criteria.snip(model, units.weights, batches, loss),
        ("fpgm", S): criteria.fpgm(model, units.prunable),
    }
    for (name, granularity), scores in want.items():
        found = compute(name, granularity, model, units, data=(batches, loss))
        assert found.keys() == scores.keys()
        assert all(torch.equal(found[k], scores[k]) for k in scores)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="'taylor' needs training batches"):
        compute("taylor", S, model, units)


@pytest.mark.parametrize("granularity", Granularity)
def test_every_known_name_scores_every_unit(granularity: Granularity) -> None:
    model, units = traced("residual")
    shape = CASES["residual"].example.shape[1:]
    data = [
        (torch.randn(6, *shape, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 4)
    ]
    names = [g.name for g in units.prunable] if granularity is S else list(units.weights)
    for name in KNOWN[granularity]:
        scores = compute(
            name, granularity, model, units, data=(data, criteria.classification_loss())
        )
        assert list(scores) == names, name
        assert all((s >= 0).all() and s.isfinite().all() for s in scores.values()), name
