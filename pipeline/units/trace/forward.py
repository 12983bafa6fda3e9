"""Run the forward of a network without computing it, and without leaving a mark on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from pipeline.units.modules import layers_of, tensors_in
from pipeline.units.trace.shapes import META


@contextmanager
def _decomposed() -> Iterator[None]:
    """Attention as products and a softmax on every device, not as one fused operator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def module_stack(layers: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Paths of the modules whose forward runs now, outermost first.

    After an exception the list says where it was raised.
    """
    paths = {id(layer): path for path, layer in layers.items()}
    stack: list[str] = []

    def push(module: nn.Module, _inputs: Any) -> None:
        stack.append(paths.get(id(module), stack[-1] if stack else ""))

    def pop(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        stack.pop()

    handles = [register_module_forward_pre_hook(push), register_module_forward_hook(pop)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def to_device(tree: Any, device: torch.device) -> Any:
    """Nested inputs with their tensors on `device`."""
    if isinstance(tree, Tensor):
        return tree.detach().to(device)
    if isinstance(tree, (list, tuple)):
        return type(tree)(to_device(item, device) for item in tree)
    if isinstance(tree, Mapping):
        return {key: to_device(item, device) for key, item in tree.items()}
    return tree


class Forward:
    """`model(*inputs)` with stand-ins for its tensors.

    On the meta device only shapes are computed. A network that cannot run there (it reads values,
    or makes tensors on a device of its own) runs on its own tensors.

    Attributes:
        named: modules with their paths, a shared one under each of its names.
        layers: the same under their first names.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model = model
        self.inputs = example_inputs
        self.meta = True
        self.named = layers_of(model)
        first = {id(layer): path for path, layer in reversed(self.named)}
        self.layers = {path: layer for path, layer in self.named if first[id(layer)] == path}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, shared ones shared, on the device of the run.

        Buffers that a forward writes (statistics, observers) are copies there.
        """
        own = tensors_in(self.named)
        if self.meta:
            unique = {id(x): torch.empty_like(x, device=META) for x in own.values()}
        else:
            unique = {id(x): x if isinstance(x, nn.Parameter) else x.clone() for x in own.values()}
        return {name: unique[id(x)] for name, x in own.items()}

    def parameters(self) -> dict[str, Tensor]:
        """The model's own, a shared one under its first name."""
        found: dict[int, tuple[str, Tensor]] = {}
        for path, layer in self.layers.items():
            for key, x in layer._parameters.items():
                if x is not None:
                    found.setdefault(id(x), (f"{path}.{key}" if path else key, x))
        return dict(found.values())

    def run(
        self,
        tensors: Mapping[str, Tensor],
        mode: AbstractContextManager[Any],
        seen: Callable[[Any], None] | None = None,
    ) -> Any:
        """The outputs; `seen` is given the inputs as the network gets them."""
        inputs = to_device(self.inputs, META) if self.meta else self.inputs
        if seen is not None:
            seen(inputs)
        args, kwargs = _arguments(inputs)
        standing_in = self._standing_in(tensors)
        with torch.no_grad(), self._evaluating(), _decomposed(), standing_in, mode:
            return self.model(*args, **kwargs)

    @contextmanager
    def _standing_in(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """The modules hold `tensors` in place of their own; attributes that a forward sets (a cache
        or the weight that a hook of weight_norm computes) come back as they were."""
        stores = [
            (store, key, f"{path}.{key}" if path else key)
            for path, layer in self.named
            for store in (layer._parameters, layer._buffers)
            for key, x in store.items()
            if x is not None
        ]
        own = [store[key] for store, key, _ in stores]
        plain = [(layer.__dict__, dict(layer.__dict__)) for layer in self.layers.values()]
        try:
            for store, key, name in stores:
                store[key] = tensors[name]  # type: ignore[assignment]
            yield
        finally:
            for (store, key, _), x in zip(stores, own, strict=True):
                store[key] = x
            for attributes, before in plain:
                for key in attributes.keys() - before.keys():
                    del attributes[key]
                attributes.update(before)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode; every module's own flag comes back."""
        flags = [(layer, layer.training) for layer in self.layers.values()]
        if any(flag for _, flag in flags):
            self.model.eval()
        try:
            yield
        finally:
            for layer, flag in flags:
                if layer.training != flag:
                    layer.training = flag


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (list, tuple)) else ((inputs,), {})
