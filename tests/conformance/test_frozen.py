"""Every method on networks with frozen batch norms: frozen values do not change, are never taken
for zero, and are removed with their channel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor, nn

from pipeline import registry
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state, seed_everything
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job
from pipeline.training.method import Method
from pipeline.training.tasks.task import Classification
from pipeline.units.enforce import enforce
from pipeline.units.frozen import with_frozen_parameters
from pipeline.units.groups import Granularity, Units
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.conformance.test_methods import METHODS, RECIPE, Batches, network
from tests.pipeline.training.toy import Recorder

NEEDS_SCALES = ("early_bird", "slimming")  # they learn the scales of batch norms
SETTINGS: dict[str, dict[str, float]] = {  # that reach zeros within a few steps, or set a scale
    "early_bird": {"gamma_init": 0.7},
    "gates": {"lr": 0.2, "balance": 50.0, "target_gate_mean": 0.3},
    "slimming": {"gamma_init": 0.7},
}
EXAMPLE = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _all_frozen(_name: str) -> bool:
    return True


def _second_frozen(name: str) -> bool:
    return "bn2" in name


def _with_frozen_norms(chosen: Callable[[str], bool]) -> nn.Module:
    """The network of the other conformance tests with the batch norms of a detection backbone.

    Every third channel has no shift, so it is zero if its filter is.
    """
    from torchvision.ops import FrozenBatchNorm2d

    model, _ = network()
    generator = torch.Generator().manual_seed(3)
    for parent_name, parent in list(model.named_modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d) and chosen(f"{parent_name}.{name}"):
                norm = FrozenBatchNorm2d(layer.num_features)
                for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    x.copy_(0.5 + torch.rand(x.shape, generator=generator))
                norm.bias[::3] = 0.0
                setattr(parent, name, norm)
    return with_frozen_parameters(model)


def _without_gradients() -> nn.Module:
    """torch's own batch norms without gradients, except the inner ones."""
    model, _ = network()
    generator = torch.Generator().manual_seed(3)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d) and "bn2" not in name:
            layer.requires_grad_(False)
            layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator))
            layer.bias[::3] = 0.0
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "all frozen": lambda: _with_frozen_norms(_all_frozen),
    "some frozen": lambda: _with_frozen_norms(_second_frozen),
    "without gradients": _without_gradients,
}
PAIRS = [
    (name, kind)
    for name in METHODS
    for kind in NETWORKS
    if not (name in NEEDS_SCALES and kind == "all frozen")
]


def build(name: str) -> Method:
    spec = registry.method_spec(name)
    return spec.build(spec.config(**SETTINGS.get(name, {})))


def untrained(kind: str) -> tuple[nn.Module, Units]:
    model = NETWORKS[kind]()
    return model, trace_units(model, EXAMPLE[:1], ("linear",))


def job(name: str, kind: str) -> Job:
    seed_everything(0)
    model, units = untrained(kind)
    return Job(
        model=model,
        units=units,
        method=build(name),
        task=Classification(3),
        recipe=RECIPE,
        train=Batches(),
        validation=list(Batches().epoch(1000)),
        seed=0,
        device=torch.device("cpu"),
        fresh=lambda _: clone_state(NETWORKS[kind]()),
    )


@cache
def trained(name: str, kind: str) -> Job:
    made = job(name, kind)
    with TemporaryDirectory() as folder:
        fit(made, CheckpointFolder(Path(folder), name), Recorder())
    made.method.release(made.model)
    return made


def gated(made: Job) -> nn.Module:
    """The network with its learned gates on, the open ones set to 1, because the delivered network
    has no gates."""
    model = copy.deepcopy(made.model)
    method = build("gates")
    method.prepare(model, made.units)
    state = made.method.state_dict()
    method.load_state_dict({"gates": {k: (g > 0).to(g) for k, g in state["gates"].items()}})
    return model


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters without gradient, and the statistics of frozen batch norms."""
    found = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.BatchNorm2d):
            found |= {f"{name}.{k}": x for k, x in layer.named_buffers(recurse=False)}
    return found


def zeroed(made: Job) -> dict[str, Tensor]:
    """Per group, the channels whose trained weights are all zero, ignoring frozen values."""
    parameters = dict(made.model.named_parameters())
    found = {}
    for group in made.units.prunable:
        own = [
            s for s in group.zig if (p := parameters.get(s.tensor)) is not None and p.requires_grad
        ]
        gone = torch.ones(group.size, dtype=torch.bool)
        for s in own:
            rows = parameters[s.tensor].detach().movedim(s.dim, 0)[s.index]
            gone &= rows.flatten(1).abs().amax(1) == 0
        found[group.name] = gone
    return found


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(EXAMPLE)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_what_is_frozen_stays(name: str, kind: str) -> None:
    before, after = (frozen_tensors(m) for m in (untrained(kind)[0], trained(name, kind).model))
    assert before.keys() == after.keys()
    assert before
    assert [k for k, x in before.items() if not torch.equal(x, after[k])] == []


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_frozen_shift_is_never_taken_for_zero(name: str, kind: str) -> None:
    """Removing units with saliency 0 changes no output; the rule `zeros` relies on it."""
    made = trained(name, kind)
    if made.method.granularity is Granularity.UNSTRUCTURED:
        return
    saliency = made.method.saliency(made.model, made.units)
    plan = select(saliency, made.method.granularity, Target(rule="zeros"), None)
    shrunk = copy.deepcopy(made.model)
    shrink(plan, shrunk, made.units)
    want = outputs(gated(made)) if name == "gates" else outputs(made.model)
    assert (outputs(shrunk) - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_laws_hold(name: str, kind: str) -> None:
    made = trained(name, kind)
    saliency = made.method.saliency(made.model, made.units)
    assert saliency
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in saliency.values())
    plan = select(saliency, made.method.granularity, Target(rule="fraction", value=0.5), None)
    masked, shrunk = copy.deepcopy(made.model), copy.deepcopy(made.model)
    enforce(plan, masked, made.units)
    if plan.granularity is Granularity.UNSTRUCTURED:
        assert outputs(masked).isfinite().all()
        return
    shrink(plan, shrunk, made.units)
    want = outputs(masked)
    assert (outputs(shrunk) - want).abs().max() <= 1e-5 * want.abs().max()
    again = copy.deepcopy(masked)
    shrink(plan, again, made.units)
    assert (outputs(again) - want).abs().max() <= 1e-5 * want.abs().max()
    assert sum(p.numel() for p in shrunk.parameters()) < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("name", NEEDS_SCALES)
def test_without_a_trained_scale_it_declines(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scale"):
        fit(job(name, "all frozen"), CheckpointFolder(tmp_path, name), Recorder())


def test_the_networks_put_the_question() -> None:
    """Some method zeroes channels whose frozen shift is not zero."""
    asked = 0
    for name, kind in PAIRS:
        made = trained(name, kind)
        if made.method.granularity is Granularity.UNSTRUCTURED:
            continue
        saliency = made.method.saliency(made.model, made.units)
        asked += sum(
            int((gone & (saliency[k] > 0)).sum())
            for k, gone in zeroed(made).items()
            if k in saliency
        )
    assert asked > 0
