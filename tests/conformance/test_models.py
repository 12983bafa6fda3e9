"""Every registered network against the contract: it builds, is traced, and prunes exactly."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import registry
from pipeline.data.info import DatasetInfo
from pipeline.measure.count import MacsModel, count
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import assert_laws, random_plan, randomise_bn

SMALL = {"width": 8}
"""Small widths, so that large networks can be checked cheaply."""


def classifiers() -> list[tuple[str, str]]:
    specs = [s for f in registry.family_names() for s in registry.family_models(f).values()]
    return [(s.family, s.name) for s in specs if s.task == "classification" and "110" not in s.name]


def build(family: str, name: str) -> tuple[nn.Module, torch.Tensor, tuple[str, ...]]:
    spec = registry.model_spec(family, name)
    side = 32 if family in ("vgg", "mobilenet", "resnet_imagenet") else 16
    info = DatasetInfo("toy", (3, side, side), 7)
    known = inspect.signature(spec.build).parameters
    torch.manual_seed(0)
    model = spec.build(info, **{k: v for k, v in SMALL.items() if k in known})
    return model, torch.randn(2, *info.input_shape), spec.never_prune


@pytest.mark.parametrize(("family", "name"), classifiers())
def test_a_registered_network_is_pruned_exactly(family: str, name: str) -> None:
    model, example, never = build(family, name)
    units = trace_units(model, example, never)
    assert units.prunable
    heads = [g for g in units.groups if any(s.tensor.startswith(never) for s in g.zig)]
    assert heads
    assert not any(g.prunable for g in heads)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(1))
    assert_laws(lambda: build(family, name)[0], example, units, plan, torch.float64)


@pytest.mark.parametrize(("family", "name"), classifiers())
def test_the_cost_of_a_plan_is_the_cost_of_the_shrunk_network(family: str, name: str) -> None:
    model, example, never = build(family, name)
    units = trace_units(model, example, never)
    plan = random_plan(units, 0.3, torch.Generator().manual_seed(2))
    costs = MacsModel(model, example[:1], units)
    randomise_bn(model, torch.Generator().manual_seed(3))
    shrink(plan, model, units)
    counted = count(model, example[:1])
    assert (costs.macs(plan), costs.params(plan)) == (counted.macs, counted.params)


def deep_state(root: nn.Module) -> dict[int, Any]:
    """Every object reachable from the modules, with its content; tensors with their values."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in found:
            continue
        if isinstance(item, torch.Tensor):
            found[id(item)] = (item, item.detach().clone())
            continue
        if isinstance(item, dict):
            members = [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, deque)):
            members = sorted(item, key=id) if isinstance(item, set) else list(item)
        elif isinstance(item, (nn.Module, Notes)):
            members = [item.__dict__]
        else:
            continue
        found[id(item)] = (item, [id(m) for m in members])
        waiting += members
    return found


def assert_untouched(model: nn.Module, trace: Callable[[], Any]) -> None:
    before = deep_state(model)
    trace()
    after = deep_state(model)
    assert before.keys() == after.keys()
    for key, (item, held) in before.items():
        if isinstance(held, torch.Tensor):
            assert torch.equal(held, after[key][1])
        else:
            assert held == after[key][1], type(item)


@pytest.mark.parametrize(("family", "name"), classifiers())
def test_a_trace_leaves_the_network_as_it_found_it(family: str, name: str) -> None:
    model, example, never = build(family, name)
    assert_untouched(model, lambda: trace_units(model, example, never))


class Forgetful(nn.Module):
    """Its first forward fills caches, installs a hook, sets attributes and registers a buffer."""

    def __init__(self, values: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
        self.cache: dict[str, torch.Tensor] = {}
        self.seen: list[int] = []
        self.kinds: set[str] = set()
        self.recent: deque[int] = deque(maxlen=2)
        self.notes = Notes()
        self.calls = torch.zeros(())
        self.values = values

    def train(self, mode: bool = True) -> nn.Module:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.values and x.sum().item() == 0:
            return x
        if "scale" not in self.cache:
            self.cache["scale"] = torch.ones(6, device=x.device) * 2
            self.inner.register_forward_hook(lambda _m, _i, out: out * 3)
            self.register_buffer("made", torch.ones(1), persistent=False)
        self.seen.append(len(x))
        self.kinds.add(str(x.dtype))
        self.recent.append(1)
        self.notes.last = x
        if self.values:
            self.calls += 1
        return self.outer(self.inner(x * self.cache["scale"]).relu())


class Notes:
    """An object that is no module."""

    last: Any = None


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_trace_leaves_no_cache_and_no_hook(values: bool, training: bool) -> None:
    model = Forgetful(values).train(training)
    model.cache["old"] = torch.zeros(2)
    example = torch.randn(4, 6)
    assert_untouched(model, lambda: trace_units(model, example))
    assert [g.size for g in trace_units(model, example).prunable] == [8]


def test_a_traced_transformer_returns_its_hidden_states_once() -> None:
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = LlamaModel(LlamaConfig(vocab_size=20, num_hidden_layers=2, **sizes)).eval()
    words = torch.zeros(1, 4, dtype=torch.int64)
    example = {"input_ids": words, "output_hidden_states": True}
    assert_untouched(model, lambda: trace_units(model, example))
    assert len(model(**example).hidden_states) == 3
