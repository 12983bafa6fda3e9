"""A router without some of its experts: their logits are minus infinity.

An expert whose weights are zero is not absent. Its router still gives it a probability and a place
among the top k, which the others then lack. Absent is an expert that the router cannot choose: with
a logit of minus infinity its softmax is exactly 0, the others share the rest, and top-k passes it
over. That is what surgery leaves, and what masking has to compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_VIEWS = frozenset(
    {"t", "transpose", "permute", "view", "reshape", "contiguous", "detach", "numpy_T", "swapaxes"}
    | {"float", "to", "type", "type_as", "double", "half", "bfloat16", "unsqueeze", "squeeze"}
    | {"__get__", "expand", "clone"}
)
"""Functions that return the entries of their argument, in other places or of another type."""


class MaskedLogits(TorchFunctionMode):
    """What is computed directly from `tensors` and has an entry per expert is minus infinity where
    an expert is gone: logits, and logits plus a bias."""

    def __init__(self, tensors: Iterable[Tensor], gone: Tensor) -> None:
        super().__init__()
        self.gone = gone
        self.known = {id(x): x for x in tensors}  # holding them, so that no id is used again
        self.met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        given = (*args, *(kwargs or {}).values())
        if not isinstance(out, Tensor) or not any(id(x) in self.known for x in given):
            return out
        if getattr(func, "__name__", "") in _VIEWS:
            self.known[id(out)] = out
            return out
        if out.is_floating_point() and out.ndim and out.shape[-1] == self.gone.numel():
            self.met = True
            return out.masked_fill(self.gone.to(out.device), -math.inf)
        return out


class RouterMask:
    """Forward hooks of the module that holds the router's tensors; copied along with it."""

    def __init__(self, names: tuple[str, ...], gone: Tensor) -> None:
        self.names, self.gone = names, gone
        self._running: list[MaskedLogits] = []

    def enter(self, module: nn.Module, _inputs: Any) -> None:
        own = {**module._parameters, **module._buffers}
        found = [x for name in self.names if (x := own[name]) is not None]
        self._running.append(MaskedLogits(found, self.gone))
        self._running[-1].__enter__()

    def leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._running:
            self._running.pop().__exit__(None, None, None)


def mask_router(model: nn.Module, tensors: Iterable[str], keep: Tensor) -> None:
    """From now on the router with these tensors never chooses the experts that are not kept."""
    own: dict[str, list[str]] = {}
    for name in tensors:
        path, _, key = name.rpartition(".")
        own.setdefault(path, []).append(key)
    for path, keys in own.items():
        module = model.get_submodule(path)
        unmask(module)
        mask = RouterMask(tuple(keys), ~keep.cpu())
        module.register_forward_pre_hook(mask.enter)
        module.register_forward_hook(mask.leave, always_call=True)


def unmask(module: nn.Module) -> None:
    """Take the mask off a router, if it has one."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), RouterMask):
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


def topk_of(x: Any, args: tuple[Any, ...], kwargs: dict[str, Any], experts: int) -> int:
    """k of a `topk` over that many entries; 0 where the call is another one."""
    if not isinstance(x, Tensor) or not x.ndim:
        return 0
    k = kwargs.get("k", args[0] if args else 1)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    return int(k) if x.shape[dim] == experts else 0


class WatchTopK(TorchFunctionMode):
    """The largest k of all `topk` over that many entries."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.most = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "topk":
            x, rest = (args[0], args[1:]) if args else (kwargs.get("input"), ())
            self.most = max(self.most, topk_of(x, rest, kwargs, self.experts))
        return func(*args, **kwargs)
