"""Run the forward of a network without computing it, and without leaving a mark on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from pipeline.units.modules import tensors_of

META = torch.device("meta")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own flag comes back."""
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


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
def module_stack(model: nn.Module) -> Iterator[list[str]]:
    """Paths of the modules whose forward runs now, outermost first.

    After an exception the list says where it was raised.
    """
    paths = {id(module): path for path, module in model.named_modules()}
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
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model = model
        self.inputs = example_inputs
        self.meta = True

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, shared ones shared, on the device of the run."""
        own = tensors_of(self.model)
        if not self.meta:
            return own
        unique = {id(x): torch.empty_like(x, device=META) for x in own.values()}
        return {name: unique[id(x)] for name, x in own.items()}

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
        with torch.no_grad(), evaluating(self.model), _decomposed(), mode:
            if not self.meta and all(
                tensors[name] is x for name, x in tensors_of(self.model).items()
            ):
                return self.model(*args, **kwargs)
            return functional_call(self.model, dict(tensors), args, kwargs)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (list, tuple)) else ((inputs,), {})
