"""Run the forward of a network without computing it, and without leaving a mark on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from pipeline.units.module_state import State
from pipeline.units.modules import layers_of
from pipeline.units.modules import tensors_in as tensors_in_layers
from pipeline.units.trace.calls import tensors_in
from pipeline.units.trace.demand.numbers import Numbers
from pipeline.units.trace.skipped.layouts import META
from pipeline.units.trace.skipped.sequences import Sequences


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


class ConstantsOnCPU(TorchFunctionMode):
    """`torch.tensor(data, device=...)` and kin make the tensor on the CPU, then move it.

    Made on the meta device its values would be lost before an operator is seen.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is Tensor.new_tensor:
            like, data, *rest = args
            kwargs = {"dtype": like.dtype, "device": like.device, **kwargs}
            return self._made(torch.tensor, data, tuple(rest), kwargs)
        data = args[0] if args else kwargs.get("data")
        if func in _MAKERS and args and not isinstance(data, Tensor):
            return self._made(func, data, args[1:], kwargs)
        return func(*args, **kwargs)

    def _made(self, func: Any, data: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        device = kwargs.pop("device", None)
        made: Tensor = func(data, *rest, **kwargs)
        return made if device is None else made.to(device)


_MAKERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray})


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

    On the meta device only shapes are computed, and numbers on demand for a network that reads
    values or makes tensors on a device of its own. What cannot run there runs on its own tensors.

    Attributes:
        numbers: on the meta device, where they are needed.
        named: modules with their paths, a shared one under each of its names.
        layers: the same under their first names.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model = model
        self.inputs = example_inputs
        self.meta = True
        self.numbers: Numbers | None = None
        self.named = layers_of(model)
        first = {id(layer): path for path, layer in reversed(self.named)}
        self.layers = {path: layer for path, layer in self.named if first[id(layer)] == path}
        self.sequences = Sequences(self.layers)
        self._own: dict[str, Tensor] = tensors_in_layers(self.named)
        self._places = [
            (store, key, f"{path}.{key}" if path else key)
            for path, layer in self.named
            for store in (layer._parameters, layer._buffers)
            for key, x in store.items()
            if x is not None
        ]
        self._made: dict[int, Tensor] = {}
        self._laid: dict[int, Any] = {}
        self._state = State(self.layers.values())

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, shared ones shared, on the device of the run.

        Buffers that a forward writes (statistics, observers) are copies there.
        """
        own = self._own
        if not self.meta:
            unique = {id(x): x if isinstance(x, nn.Parameter) else x.clone() for x in own.values()}
        elif self.numbers is None:
            unique = self._shapes()
        else:
            unique = {id(x): torch.empty_like(x, device=META) for x in own.values()}
            for x in own.values():
                self.numbers.know(unique[id(x)], x)
        return {name: unique[id(x)] for name, x in own.items()}

    def _shapes(self) -> dict[int, Tensor]:
        """The same tensors as before, but for those that a forward made other ones."""
        for x in self._own.values():
            made = self._made.get(id(x))
            if made is None or (made.shape, made.dtype, made.stride()) != self._laid[id(x)]:
                made = self._made[id(x)] = torch.empty_like(x, device=META)
                self._laid[id(x)] = made.shape, made.dtype, made.stride()
        return self._made

    @property
    def touched(self) -> Mapping[int, Any]:
        """What forwards left in the modules (see `State`)."""
        return self._state.touched

    @property
    def remembered(self) -> bool:
        """Did the network's code leave something outside the modules (see `State`)?"""
        return self._state.remembered

    @property
    def elements(self) -> float:
        """Of its tensors and inputs; there is no end of those that have no numbers."""
        own = {id(x): x for x in (*self._own.values(), *tensors_in(self.inputs))}
        return sum(math.inf if x.is_meta else x.numel() for x in own.values())

    def parameters(self) -> dict[str, Tensor]:
        """The model's own, a shared one under its first name."""
        found: dict[int, tuple[str, Tensor]] = {}
        for path, layer in self.layers.items():
            for key, x in layer._parameters.items():
                if x is not None:
                    found.setdefault(id(x), (f"{path}.{key}" if path else key, x))
        return dict(found.values())

    def owners(
        self, tensors: Mapping[str, Tensor], first_name: Mapping[int, str]
    ) -> dict[str, frozenset[str]]:
        """Tensor -> the layers that hold it."""
        owners: dict[str, set[str]] = {}
        for path, layer in self.layers.items():
            for key, x in (*layer._parameters.items(), *layer._buffers.items()):
                if x is not None:
                    name = first_name[id(tensors[f"{path}.{key}" if path else key])]
                    owners.setdefault(name, set()).add(path)
        return {name: frozenset(paths) for name, paths in owners.items()}

    def run(
        self,
        tensors: Mapping[str, Tensor],
        mode: AbstractContextManager[Any],
        seen: Callable[[Any], None] | None = None,
        install: Callable[[], Iterable[nn.Module]] = tuple,
        ours: Collection[int] = (),
    ) -> Any:
        """The outputs; `seen` is given the inputs as the network gets them.

        Args:
            install: puts other forwards into modules, which it returns, for this run.
            ours: ids of containers in the modules that the caller has changed.
        """
        inputs = self._inputs() if self.meta else self.inputs
        if seen is not None:
            seen(inputs)
        args, kwargs = _arguments(inputs)
        standing_in = self._standing_in(tensors, ours)
        valued = ConstantsOnCPU() if self.numbers else nullcontext()
        with torch.no_grad(), _decomposed(), standing_in, valued, mode:
            changed = install() if self.meta and self.numbers is None else ()
            try:
                return self.model(*args, **kwargs)
            finally:
                for layer in changed:
                    layer.__dict__.pop("forward", None)

    def _inputs(self) -> Any:
        found = to_device(self.inputs, META)
        if self.numbers is not None:
            for made, x in zip(tensors_in(found), tensors_in(self.inputs), strict=True):
                self.numbers.know(made, x)
        return found

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Modules with their own tensors, in evaluation mode, to be run one by one."""
        meta, self.meta = self.meta, False
        try:
            with self._standing_in(self.tensors()):
                yield
        finally:
            self.meta = meta

    @contextmanager
    def _standing_in(
        self, tensors: Mapping[str, Tensor], ours: Collection[int] = ()
    ) -> Iterator[None]:
        """The modules hold `tensors` in place of their own, in evaluation mode.

        Afterwards everything is as it was: tensors, flags, and whatever the forward set, cached or
        installed.
        """
        training = [layer for layer in self.layers.values() if layer.training]
        try:
            if training:
                self.model.eval()
            for store, key, name in self._places:
                store[key] = tensors[name]
            yield
        finally:
            for layer in training:
                layer.__dict__["training"] = True
            self._state.restore(ours)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (list, tuple)) else ((inputs,), {})
