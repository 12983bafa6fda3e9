"""Masking and surgery by hand: what is zeroed, what is cut, what vanishes, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.units import cuts
from pipeline.units.constant import Constant
from pipeline.units.enforce import Enforcer, enforce
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import apply_plan, shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, outputs, random_plan, randomise_bn
from tests.pipeline.units.nets import CASES, Net, conv, image


def structured(**keep: list[int]) -> PruningPlan:
    masks = {k.replace("__", "."): torch.tensor(v, dtype=torch.bool) for k, v in keep.items()}
    return PruningPlan(Granularity.STRUCTURED, masks)


def test_enforce_zeroes_the_zig_and_nothing_else() -> None:
    case = CASES["chain"]
    model = randomise_bn(case.build(), torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    enforce(structured(**{"0": [1, 0, 1, 1, 1, 1]}), model, trace_units(model, case.example))
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name in changed:
        assert not after[name][1].any()
        kept = [0, 2, 3, 4, 5]
        assert torch.equal(after[name][kept], before[name][kept])


def test_enforce_masks_single_weights() -> None:
    case = CASES["chain"]
    model = case.build()
    units = trace_units(model, case.example)
    mask = torch.rand(model[0].weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    plan = PruningPlan(Granularity.UNSTRUCTURED, {"0.weight": mask})
    want = model[0].weight.detach() * mask
    enforcer = Enforcer(plan, model, units)
    enforcer.apply()
    assert torch.equal(model[0].weight, want)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    enforcer.apply()
    assert torch.equal(model[0].weight != 0, mask)


def test_enforce_refuses_what_does_not_fit() -> None:
    case = CASES["chain"]
    model = case.build()
    units = trace_units(model, case.example)
    wrong = PruningPlan(Granularity.UNSTRUCTURED, {"0.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"mask of '0.weight' has shape \(2,\)"):
        enforce(wrong, model, units)
    unknown = PruningPlan(Granularity.UNSTRUCTURED, {"9.weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="no parameter '9.weight'"):
        enforce(unknown, model, units)


def test_shrink_cuts_shapes_and_attributes() -> None:
    case = CASES["depthwise"]
    model = case.build()
    units = trace_units(model, case.example)
    model[0].bias.requires_grad_(False)
    shrink(structured(**{"0": [1, 0, 0, 1, 1, 1, 0, 1], "5": [0, 1, 1, 1, 0, 0]}), model, units)
    assert (model[0].out_channels, model[0].in_channels) == (5, 3)
    assert (model[2].groups, model[2].in_channels, model[2].out_channels) == (5, 5, 5)
    assert model[2].weight.shape == (5, 1, 3, 3)
    assert model[3].num_features == 5
    assert model[3].running_var.shape == (5,)
    assert (model[9].in_features, model[9].out_features) == (3 * 16, 4)
    assert isinstance(model[0].weight, nn.Parameter)
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad
    model(case.example).sum().backward()


def test_group_norm_and_groups_follow() -> None:
    case = CASES["group_norm"]
    model = case.build()
    shrink(structured(**{"0": [1, 0, 1, 0]}), model, trace_units(model, case.example))
    assert (model[1].num_groups, model[1].num_channels) == (2, 4)
    case = CASES["grouped"]
    model = case.build()
    shrink(structured(**{"0": [1, 0, 1], "2": [0, 1]}), model, trace_units(model, case.example))
    assert (model[2].groups, model[2].in_channels, model[2].out_channels) == (4, 8, 4)
    assert model[2].weight.shape == (4, 2, 3, 3)


def test_a_dead_layer_costs_nothing() -> None:
    case = CASES["residual"]
    units = trace_units(case.build(), case.example)
    shrunk = assert_laws(case.build, case.example, units, structured(a=[0] * 5))
    assert isinstance(shrunk.a, Constant)
    assert isinstance(shrunk.bn1, nn.Identity)
    assert isinstance(shrunk.b, Constant)
    left = {n for n, _ in shrunk.named_parameters()}
    assert {n for n in left if n[0] in "ab"} == {"b.bias", "bn.weight", "bn.bias", "bn2.weight"} | {
        "bn2.bias"
    }
    shrunk.train()(case.example.double()).sum().backward()


def test_a_dead_stream_is_exact_too() -> None:
    case = CASES["residual"]
    units = trace_units(case.build(), case.example)
    shrunk = assert_laws(case.build, case.example, units, structured(stem=[0] * 6))
    assert isinstance(shrunk.fc, Constant)


def test_a_dead_branch_of_a_concat_keeps_one_zero_channel() -> None:
    case = CASES["concat"]
    units = trace_units(case.build(), case.example)
    shrunk = assert_laws(case.build, case.example, units, structured(b=[0] * 5))
    assert isinstance(shrunk.b, Constant)
    assert shrunk.b.channels == 1
    assert shrunk.bn.num_features == 7
    assert not shrunk.bn.weight[6].any()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(6, 4, (3, 2), padding="same"),
        nn.Conv2d(6, 4, 3, padding="valid", padding_mode="reflect"),
        nn.ConvTranspose2d(6, 4, 3, stride=3, padding=1, output_padding=2, dilation=2),
    ],
)
def test_constants_have_the_shape_of_the_layer(layer: nn.Module) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Net(
            lambda n, x: n.c(torch.relu(n.b(n.a(x)))).flatten(1),
            **{"a": conv(3, 6), "b": copy.deepcopy(layer), "c": nn.Conv2d(4, 2, 1)},
        )

    units = trace_units(build(), image())
    for plan in (structured(a=[0] * 6), structured(b=[0] * 4), structured(a=[0] * 6, b=[0] * 4)):
        assert_laws(build, image(), units, plan)


def test_what_surgery_refuses() -> None:
    case = CASES["chain"]
    model = case.build()
    units = trace_units(model, case.example)
    with pytest.raises(ValueError, match=r"no channel group '7' \(prunable groups: 0, 4\)"):
        shrink(structured(**{"7": [1, 0]}), model, units)
    with pytest.raises(ValueError, match="'0' has 6 channels, not 2"):
        shrink(structured(**{"0": [1, 0]}), model, units)
    with pytest.raises(ValueError, match="'8' is not prunable: it reaches the network's output"):
        shrink(structured(**{"8": [1, 0, 1, 1]}), model, units)
    with pytest.raises(ValueError, match="structured plan"):
        shrink(PruningPlan(Granularity.UNSTRUCTURED, {}), model, units)
    plan = structured(**{"0": [0, 1, 1, 1, 1, 1]})
    shrink(plan, model, units)
    with pytest.raises(ValueError, match="already shrunk"):
        shrink(plan, model, units)


def test_a_plan_that_keeps_all_changes_nothing() -> None:
    case = CASES["chain"]
    model = case.build()
    before = {id(p) for p in model.parameters()}
    shrink(structured(**{"0": [1] * 6, "8": [1] * 4}), model, trace_units(model, case.example))
    assert {id(p) for p in model.parameters()} == before


def test_apply_plan_masks_or_cuts() -> None:
    case = CASES["chain"]
    model = case.build()
    units = trace_units(model, case.example)
    mask = torch.zeros(model[0].weight.shape, dtype=torch.bool)
    apply_plan(PruningPlan(Granularity.UNSTRUCTURED, {"0.weight": mask}), model, units)
    assert not model[0].weight.any()
    apply_plan(structured(**{"0": [1, 0, 0, 0, 0, 0]}), model, units)
    assert model[0].weight.shape[0] == 1


def test_a_wrong_unit_is_noticed_by_the_laws() -> None:
    """The laws can fail: shift one slice by one position."""
    case = CASES["concat"]
    units = trace_units(case.build(), case.example)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    last = units.groups[0].slices[-1]
    last.index.copy_(last.index.roll(1, 0))
    with pytest.raises(AssertionError, match="masked != shrunk"):
        assert_laws(case.build, case.example, units, plan)


def test_shrunk_networks_are_ordinary_modules() -> None:
    case = CASES["se_gate"]
    model = case.build()
    units = trace_units(model, case.example)
    shrink(random_plan(units, 0.5, torch.Generator().manual_seed(0)), model, units)
    again = copy.deepcopy(model)
    assert torch.equal(outputs(model, case.example)[0], outputs(again, case.example)[0])
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(case.example).sum().backward()
    optimizer.step()
    assert not torch.equal(outputs(model, case.example)[0], outputs(again, case.example)[0])
    smaller = trace_units(model, case.example)
    assert sum(g.size for g in smaller.prunable) < sum(g.size for g in units.prunable)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3, 2), (7, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_large_tensors_are_cut_block_by_block(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of a block, the last one short or not."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-99, 99, shape, generator=g).to(dtype)
    alive = {d: torch.rand(n, generator=g) < 0.6 for d, n in enumerate(shape)}
    for dims in ((1, 0), (0,), tuple(range(len(shape)))):
        want = x
        for d in dims:
            want = want.index_select(d, alive[d].nonzero().flatten())
        for block in (0, 150, 1 << 20):
            monkeypatch.setattr(cuts, "BLOCK", block)
            source = x.clone().requires_grad_(dtype.is_floating_point)
            got = cuts.cut(source, {d: alive[d] for d in dims})
            assert torch.equal(got, want)
            assert got.is_contiguous()
