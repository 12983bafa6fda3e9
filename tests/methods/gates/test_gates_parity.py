"""Channel gates against numbers recorded from the original code: regulariser, blocks, search."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.gates import Gates, GatesConfig
from pipeline.data.info import DatasetInfo
from pipeline.measure.count import structured_cost
from pipeline.registry import build_model, model_spec
from pipeline.selection.fill import one_step_wider
from pipeline.selection.select import Cost, select
from pipeline.selection.target import Target
from pipeline.training.phases import Phase, StepContext
from pipeline.training.recipe import Recipe
from pipeline.units.groups import ChannelGroup, Granularity, Slice, Units
from pipeline.units.layers import owner
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from tests.methods.gates.gates_traces import BLOCKS, group, recorded

PHASE = Phase("gates", 2)
AT = StepContext(PHASE, 0, 0, 1)

# --- regulariser and blocks ---------------------------------------------------------------------


@pytest.mark.parametrize("case", recorded("regularizer")["cases"])
def test_regulariser_and_adam_step_are_the_originals(case: dict[str, Any]) -> None:
    config = GatesConfig(balance=case["lambd"], target_gate_mean=case["sparsity_level"])
    method = Gates(config)
    method.gates = {str(i): nn.Parameter(torch.tensor(g)) for i, g in enumerate(case["gates"])}
    optimizer = method.optimizer(nn.Identity(), PHASE, Recipe(epochs=2))
    loss = method.penalty(nn.Identity())
    loss.backward()
    assert loss.item() == pytest.approx(case["loss_reg"], abs=1e-6)
    gates = list(method.gates.values())
    for gate, grad in zip(gates, case["grad"], strict=True):
        torch.testing.assert_close(gate.grad, torch.tensor(grad), atol=1e-6, rtol=0)
    optimizer.step()
    for gate, value in zip(gates, case["after_one_adam_step"], strict=True):
        torch.testing.assert_close(gate.data, torch.tensor(value), atol=1e-6, rtol=0)
    method.after_step(nn.Identity(), AT)
    for gate, value in zip(gates, case["after_clamp"], strict=True):
        torch.testing.assert_close(gate.data, torch.tensor(value), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", recorded("forward"), ids=lambda c: f"{c['block']}-{c['bn_mode']}")
def test_gated_blocks_are_the_originals(case: dict[str, Any]) -> None:
    """In double precision, so that on any machine only the rounding of their float32 run differs.

    It grows with the number of terms in a gradient.
    """
    block = BLOCKS[case["block"].split()[0]]().double()
    units = Units((), tuple(group(*spec) for spec in block.groups))  # type: ignore[union-attr]
    state = {k: torch.tensor(v) for k, v in case["state_dict"].items()}
    block.load_state_dict({k: v for k, v in state.items() if not k.startswith("gates")}, False)
    if case["bn_mode"] == "train":  # the recorded statistics are those after the pass
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
    else:
        block.eval()
    method = Gates(GatesConfig(groups="all"))
    method.prepare(block, units)
    method.load_state_dict({"gates": {n: state[n] for n in method.gates}})
    assert [g.tolist() for g in method.gates.values()] == case["gates"]

    output = block(torch.tensor(case["input"]).double())
    close(output, case["output"], 1e-6)
    weights = torch.arange(output.numel()).float().cos().double()
    loss = (output.flatten() * weights).sum()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-5)
    for gate, grad in zip(method.gates.values(), case["gate_grad"], strict=True):
        assert gate.grad is not None
        close(gate.grad, grad, 3e-6)
    for name, buffer in block.named_buffers():
        if "running" in name:
            close(buffer, state[name].tolist(), 1e-6)


def close(ours: Tensor, theirs: list[Any], atol: float) -> None:
    torch.testing.assert_close(ours, torch.tensor(theirs).double(), atol=atol, rtol=1e-6)


# --- search -----------------------------------------------------------------------------------

STANDARD_MACS = {c["arch"]: c["full_macs"] for c in recorded("search")["cases"] if c["full_macs"]}
"""Conv, linear and pooling MACs of the network of standard width."""
KINDS = {"weyl": 0.0, "half_zero": 0.0, "depth25": 0.25, "depth60": 0.6}
NETS = {
    "vgg16_bn": ("vgg", "vgg16_bn_gap", 32),
    "vgg19_bn": ("vgg", "vgg19_bn_gap", 32),
    "resnet20": ("resnet_cifar", "resnet20", 32),
    "resnet56": ("resnet_cifar", "resnet56", 32),
    "resnet110": ("resnet_cifar", "resnet110", 32),
    "mobilenet_v1": ("mobilenet", "mobilenet_v1", 224),
    "mobilenet_v2": ("mobilenet", "mobilenet_v2", 224),
    "resnet50": ("resnet_imagenet", "resnet50", 224),
}
SEARCHES = recorded("search")["cases"]


def recorded_gates(case: dict[str, Any], groups: list[ChannelGroup]) -> dict[str, Tensor]:
    """The tie-free values used in the searches: multiples of the golden ratio modulo 1, decreasing
    with depth for the kinds "depth..."; MobileNetV2's second vector is that of its last layer."""
    lengths, vectors, start = case["gate_lens"], [], 0
    for depth, length in enumerate(lengths):
        i = torch.arange(start + 1, start + length + 1, dtype=torch.float64)
        scale = 1 - KINDS[case["gates"]] * depth / (len(lengths) - 1)
        vectors.append(((i * 0.6180339887498949) % 1.0 * scale).float())
        start += length
    if case["gates"] == "half_zero":
        vectors = [torch.where(v < 0.5, 0.0, v) for v in vectors]
    if case["arch"] == "mobilenet_v2":
        vectors.append(vectors.pop(1))
    assert [g.size for g in groups] == [len(v) for v in vectors]
    return {g.name: v for g, v in zip(groups, vectors, strict=True)}


def with_pooling(macs: Cost, area: int, features: int, group: str, plan: PruningPlan) -> float:
    """The recorded counter adds the inputs of a registered average pooling (VGG has none)."""
    kept = int(plan.keep[group].sum()) if group in plan.keep else features
    return macs(plan) + area * kept


@cache
def searched(arch: str, width: int, multiplier: float | None) -> tuple[Cost, list[ChannelGroup]]:
    family, name, side = NETS[arch]
    args: dict[str, Any] = {"width": width}
    if arch in ("mobilenet_v2", "resnet50"):
        args["multiplier"] = multiplier
    info = DatasetInfo("any", (3, side, side), 10 if side == 32 else 1000)
    with torch.device("meta"):
        net, image = build_model(family, name, info, args), torch.zeros(1, 3, side, side)
    units = trace_units(net, image, model_spec(family, name).never_prune)
    skip = ("blocks.*.conv3",) if arch == "mobilenet_v2" else ()
    groups = Gates(GatesConfig(skip=skip)).gated_groups(net, units)
    macs = structured_cost(net, image, units, "macs")
    if family != "vgg":
        (head,) = (m for m in net.modules() if isinstance(m, nn.Linear))
        last = next(g.name for g in units.groups if any(is_head(s, net) for s in g.slices))
        macs = partial(with_pooling, macs, 64 if side == 32 else 49, head.in_features, last)
    return macs, groups


def is_head(piece: Slice, net: nn.Module) -> bool:
    """True for the input of the classifier."""
    return piece.role == "consumer" and isinstance(net.get_submodule(owner(piece)), nn.Linear)


def widths(plan: PruningPlan) -> list[int]:
    return [int(mask.sum()) for mask in plan.keep.values()]


@pytest.mark.parametrize(
    "case", SEARCHES, ids=lambda c: f"{c['arch']}-{c['gates']}-{c['target_ratio']}"
)
def test_search_is_as_good_as_the_originals(case: dict[str, Any]) -> None:
    """Budgets refer to the standard network; ours never exceeds one, the original may."""
    macs, groups = searched(case["arch"], case["expanded_inchannel"], case["multiplier"])
    gates, total = recorded_gates(case, groups), case["n_gates"]
    dense = macs(PruningPlan(Granularity.STRUCTURED, {}))

    def keeping(count: int) -> PruningPlan:
        target = Target(rule="fraction", value=(total - count) / total)
        return select(gates, Granularity.STRUCTURED, target)

    full = case["full_macs"] or STANDARD_MACS[case["arch"]]
    budget = (1 - case["target_ratio"]) * full
    plan = select(
        gates, Granularity.STRUCTURED, Target(rule="macs", value=1 - budget / dense), macs
    )
    assert macs(plan) <= budget < macs(keeping(plan.kept + 1))
    assert min(widths(plan)) >= 1
    filled = select(
        gates,
        Granularity.STRUCTURED,
        Target(rule="macs", value=1 - budget / dense, fill=True),
        macs,
    )
    assert macs(plan) <= macs(filled) <= budget
    assert all(macs(wider) > budget for wider in one_step_wider(filled, gates, {}))
    if case["error"]:  # the original crashed: a layer had lost all its channels
        return
    if case["gates"] != "half_zero":  # which of many equal gates it keeps is arbitrary
        theirs = keeping(case["kept"])
        assert widths(theirs) == [w for w in case["pruned_cfg"] if w != "M"]
        assert macs(theirs) == case["pruned_macs"]
    near = [abs(macs(keeping(plan.kept + more)) - budget) for more in (0, 1)]
    missed = abs(case["pruned_macs"] - budget)
    assert min(near) <= missed
    if case["pruned_macs"] <= budget:
        assert near[0] <= missed
