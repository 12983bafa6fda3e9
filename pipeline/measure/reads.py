"""Which stored numbers every counted operator of a forward reads."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pipeline.measure.operators import MATRICES, factors, is_free, macs_of
from pipeline.measure.sources import EVEN, MOVES, Reading, Source
from pipeline.units.trace.calls import PRODUCTS, operator, operator_name, tensors_in
from pipeline.units.trace.forward import Forward, module_stack
from pipeline.units.trace.shapes import run

_log = logging.getLogger("espalier.count")
_named: set[str] = set()
"""Operators and modules that the log has named."""


class Recorder(TorchDispatchMode):
    """Adds up formulas, operator by operator, under the module that runs.

    Attributes:
        readings: all counted calls, in order.
        products: of these the matrix products, numbered as the tracer numbers them.
        calls: how often each operator ran; `uncounted`: those without a formula.
        rewritten: modules that write to a computed weight in a way that is not followed.
    """

    def __init__(
        self, stack: list[str], tensors: Mapping[str, Tensor], parameters: frozenset[str]
    ) -> None:
        super().__init__()
        self.stack = stack
        self.readings: list[Reading] = []
        self.products: list[Reading] = []
        self.calls: Counter[str] = Counter()
        self.uncounted: set[str] = set()
        self.rewritten: set[str] = set()
        self._alive: list[Tensor] = []
        self._activations: set[int] = set()
        self._sources: dict[int, Source] = {}
        for name, x in reversed(list(tensors.items())):
            own = name in parameters
            self._put(x, Source(name, stored=own, moved=own, even=name if own else ""))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler at the first call

    def see(self, inputs: Any) -> None:
        """These tensors are the network's input."""
        for x in tensors_in(inputs):
            self._activate(x)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        out = run(func, args, kwargs)
        self.calls[str(func.overloadpacket)] += 1
        macs = macs_of(func, args, kwargs, out)
        if macs is not None:
            self._count(func, macs, factors(func, args, kwargs))
        elif not is_free(func):
            self.uncounted.add(str(func.overloadpacket))
        self._follow(func, args, kwargs, out)
        return out

    def _count(self, func: Any, macs: int, read: list[Tensor]) -> None:
        sources = [self._source(x) for x in read]
        stored = tuple(s if s is not None and s.stored else None for s in sources)
        name = operator_name(func)
        path = self.stack[-1] if self.stack else ""
        self.readings.append(Reading(path, macs, stored, name in MATRICES))
        if name in PRODUCTS:
            self.products.append(self.readings[-1])

    def warn(self) -> None:
        """Name what is not counted, each operator and module once per process."""
        total = sum(self.calls.values())
        for name in sorted(self.uncounted - _named):
            _log.warning(
                "MACs: operator %s has no formula and counts as 0 (%d of %d calls of this forward)",
                *(name, self.calls[name], total),
            )
        for path in sorted(self.rewritten - _named):
            _log.warning(
                "MACs: %s writes to a weight in place in its forward; it counts as dense",
                path or "the network",
            )
        _named.update(self.uncounted, self.rewritten)

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Outputs depend on the input if an argument does; else they have a source."""
        given = _flat((*args, *kwargs.values()))
        outs = [out] if isinstance(out, Tensor) else list(tensors_in(out))
        fixed = torch.Tag.nondeterministic_seeded not in func.tags
        fixed = fixed and not any(id(x) in self._activations for x in given)
        if operator(func).mutates and given:
            fixed = self._may_write(given[0], fixed)
        known = [self._source(x) for x in given] if fixed else []
        if not fixed or any(source is None for source in known):
            for x in outs:
                self._activate(x)
            return
        sources = [source for source in known if source is not None]
        kind, one = operator_name(func), len(sources) == 1
        tree = tree_map(lambda x: self._source(x) if isinstance(x, Tensor) else x, (args, kwargs))
        stored = any(source.stored for source in sources)
        moved = kind in MOVES and stored and all(source.moved for source in sources)
        even = sources[0].even if one and kind in EVEN else ""
        for number, x in enumerate(outs):
            call = (func, *tree, number)
            self._put(x, Source(call=call, stored=stored, moved=moved, even=even))

    def _may_write(self, target: Tensor, fixed: bool) -> bool:
        """Is the target of an in-place call still known after it? Not if the input is written into
        it, nor where it has other views: these then count as dense, and the log names the module.
        """
        if id(target) in self._activations:
            return False
        aliases = [x for x in self._alive if _storage(x) == _storage(target)]
        if fixed and all(x is target for x in aliases):
            return True
        for x in (target, *aliases):
            source = self._sources.pop(id(x), None)
            if fixed and source is not None and source.stored:
                self.rewritten.add(self.stack[-1] if self.stack else "")
            self._activate(x)
        return False

    def _source(self, x: Tensor) -> Source | None:
        """None: an activation, or a tensor of unknown origin."""
        if id(x) in self._activations or id(x) in self._sources:
            return self._sources.get(id(x))
        for other in self._alive:  # `weight.data` is another object, made by no operator
            if _place(other) == _place(x):
                return self._sources.get(id(other))
        if x.is_meta:
            return None
        self._put(x, Source(value=x.detach()))
        return self._sources[id(x)]

    def _put(self, x: Tensor, source: Source) -> None:
        """Remember a tensor's source (and the tensor, or its id could be used again)."""
        self._sources[id(x)] = source
        self._alive.append(x)

    def _activate(self, x: Tensor) -> None:
        if id(x) not in self._activations:
            self._activations.add(id(x))
            self._alive.append(x)


def _flat(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [x for x in value if isinstance(x, Tensor)]
    return found


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _place(x: Tensor) -> tuple[Any, ...]:
    return _storage(x), x.storage_offset(), tuple(x.shape), x.stride()


def record(model: nn.Module, example: Any) -> Recorder:
    """Every counted operator of one forward; shapes only where the network allows it.

    Operators without a formula and weights that cannot be followed are named in the log, once.
    """
    forward = Forward(model, example)
    parameters = frozenset(forward.parameters())
    for meta in (True, False):  # code that reads values cannot run on shapes alone
        forward.meta = meta
        tensors = forward.tensors()
        with module_stack(forward.layers) as stack, _decomposed():
            recorder = Recorder(stack, tensors, parameters)
            try:
                forward.run(tensors, recorder, recorder.see)
            except Exception:
                if not meta:
                    raise
            else:
                break
    recorder.warn()
    return recorder


@contextmanager
def _decomposed() -> Iterator[None]:
    """Recurrent layers as matrix products on every device, not as one fused operator."""
    mkldnn, cudnn = torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled
    torch._C._set_mkldnn_enabled(False)
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch.backends.cudnn.enabled = cudnn
