"""The two laws of structured pruning, for any network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def randomise_bn(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random statistics, scales and shifts of every normalisation; random biases."""
    for layer in model.modules():
        for name, x in [*layer._parameters.items(), *layer._buffers.items()]:
            if x is None or not x.is_floating_point() or name in layer._non_persistent_buffers_set:
                continue
            noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x)
            if name == "running_var" or (x.ndim == 1 and name == "weight"):
                x.data.copy_(0.5 + noise)
            elif x.ndim == 1:
                x.data.copy_(noise - 0.5)
    return model


def random_plan(units: Units, fraction: float, generator: torch.Generator) -> PruningPlan:
    """Remove that fraction of every prunable group, rounded, at random; at least one stays, of
    experts as many as their router picks."""
    keep = {}
    for group in units.prunable:
        gone = min(round(fraction * group.size), group.size - max(1, group.least))
        mask = torch.ones(group.size, dtype=torch.bool)
        mask[torch.randperm(group.size, generator=generator)[:gone]] = False
        keep[group.name] = mask
    return PruningPlan(Granularity.STRUCTURED, keep)


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """All output tensors, in evaluation mode."""
    with torch.no_grad():
        if isinstance(example, Mapping):
            out = model.eval()(**example)
        elif isinstance(example, tuple):
            out = model.eval()(*example)
        else:
            out = model.eval()(example)
    return list(_tensors(out))


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        yield from _tensors(list(out.values()))
    elif isinstance(out, (list, tuple)):
        for item in out:
            yield from _tensors(item)


def relative(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest absolute difference over the largest absolute value."""
    assert [a.shape for a in one] == [b.shape for b in other]
    pairs = [(a.double(), b.double()) for a, b in zip(one, other, strict=True) if a.numel()]
    scale = max(float(a.abs().max()) for a, _ in pairs)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    return difference / scale if scale else difference


def _cast(example: Any, dtype: torch.dtype) -> Any:
    if isinstance(example, Tensor):
        return example.to(dtype) if example.is_floating_point() else example
    if isinstance(example, Mapping):
        return {k: _cast(v, dtype) for k, v in example.items()}
    if isinstance(example, (list, tuple)):
        return type(example)(_cast(v, dtype) for v in example)
    return example


def assert_laws(
    model_builder: Callable[[], nn.Module],
    example: Any,
    units: Units,
    plan: PruningPlan,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """masked == shrunk; a model whose removed channels are zero == the same, shrunk; a freshly
    built model shrinks to the same keys and shapes. Returns the shrunk model."""
    example = _cast(example, dtype)
    dense = randomise_bn(model_builder(), torch.Generator().manual_seed(1)).to(dtype)
    shrunk, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    shrink(plan, shrunk, units)
    enforce(plan, masked, units)
    want = outputs(masked, example)
    assert relative(want, outputs(shrunk, example)) <= TOLERANCE[dtype], "masked != shrunk"
    zeroed = copy.deepcopy(masked)
    shrink(plan, zeroed, units)
    assert relative(want, outputs(zeroed, example)) <= TOLERANCE[dtype], "dense != shrunk"
    rebuilt = model_builder().to(dtype)
    shrink(plan, rebuilt, units)
    rebuilt.load_state_dict(shrunk.state_dict(), strict=True)
    assert relative(want, outputs(rebuilt, example)) <= TOLERANCE[dtype], "rebuilt != shrunk"
    return shrunk
