"""Numbers on demand: a forward on the meta device whose tensors have values for code that asks.

Shapes come from the meta device. Beside them stands how every storage was made, and only what is
asked for is computed: an index, the boxes that a score selects, a number that decides a path. Large
products are not computed at all but answered by noise, so that a detector costs what its last
elementwise operators cost; smaller ones give the true values. Any values would do: they choose one
of the paths that the network's code can take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pipeline.units.trace.calls import PRODUCTS, Operator, flat, operator, tensors_in
from pipeline.units.trace.demand.lazy import Lazy, Seen, laid, mapped, noise, now, numel
from pipeline.units.trace.shapes import run
from pipeline.units.trace.skipped.layouts import META

LARGE = 1 << 24
"""Multiplications and additions of one product, above which it is answered by noise."""

LOOKUPS = frozenset({"index", "_unsafe_index", "index_put", "_unsafe_index_put"})
SMALL = 1 << 16
"""Elements up to which it is faster to compute a result than to find its shape."""

COPIED = 1 << 20
"""Elements of a tensor with numbers that is copied where it enters, as it may be written later."""


class Numbers:
    """Of the storages of tensors on the meta device."""

    def __init__(self) -> None:
        self._of: dict[int, Lazy] = {}
        self._held: list[Any] = []  # or an address could be used again

    @contextmanager
    def for_a_while(self) -> Iterator[None]:
        """What is made meanwhile is forgotten."""
        of, held = dict(self._of), len(self._held)
        try:
            yield
        finally:
            self._of = of
            del self._held[held:]

    def know(self, made: Tensor, x: Tensor) -> None:
        """A tensor on the meta device has the numbers of `x`, which nothing writes to."""
        if not x.is_meta:
            self._set(made, Lazy((), lambda: laid(x.detach().cpu(), made)))

    def stand_in(self, x: Tensor) -> Tensor:
        """A tensor on the meta device with these numbers."""
        made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)
        self.know(made, x)
        self._storage(made).get()
        return made

    def copy_of(self, known: Seen) -> Tensor:
        """A tensor on the meta device with the numbers that one had."""
        x = known.tensor
        made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)
        again = Lazy((known.storage,), lambda: laid(known.value(), made))
        self._set(made, again)
        if known.storage.made:
            again.get()
        return made

    def seen(self, x: Tensor) -> Seen:
        """How it is now, to be computed later."""
        return Seen(self._storage(x), x)

    def value(self, x: Tensor) -> Tensor:
        """Its numbers; not to be written to."""
        return self.seen(x).value() if x.is_meta else x

    def integers(self, tree: Any) -> Any:
        """Nested inputs with the numbers of those tensors that are not floating point."""
        return mapped(tree, lambda x: x if x.is_floating_point() else self.value(x))

    def run(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], decided: Sequence[Any] = ()
    ) -> Any:
        """`func(*args, **kwargs)`; what the recorded forward decided is not decided again."""
        kind = operator(func)
        tensors, device = flat((*args, *kwargs.values())), kwargs.get("device")
        here = [x.is_meta for x in tensors]
        to_meta = device is not None and device.type == "meta"
        if not to_meta and True not in here:
            return func(*args, **kwargs)
        if device is not None and not to_meta:  # the code asks for numbers
            return func(*self._with(args), **kwargs)
        if kind.mutates and not here[0]:
            return func(*self._with(args), **self._with(kwargs))
        if kind.name not in LOOKUPS and _depends(func):
            return self._decide(func, args, kwargs, decided)
        if tensors and self._at_hand(tensors):
            if kind.mutates and torch.Tag.inplace_view not in func.tags:
                self._write(func, args, kwargs)
                self._storage(args[0]).get()
                return args[0]
            if not (kind.aliases or decided):
                kwargs = kwargs if device is None else {**kwargs, "device": None}
                return self._standing(_computed(func, self._with(args), self._with(kwargs)))
        plain = False not in here and kind.name not in LOOKUPS
        try:
            out = run(func, *((args, kwargs) if plain else self._shapes_of(kind, args, kwargs)))
        except Exception as error:
            if func.namespace == "aten" and not isinstance(error, NotImplementedError):
                raise
            return self._decide(func, args, kwargs, decided)
        self._note(func, args, kwargs, out)
        return out

    def _at_hand(self, tensors: Sequence[Tensor]) -> bool:
        """Are there few numbers, and are they known?"""
        return all(
            x.numel() <= SMALL and not (x.is_meta and not self._storage(x).made) for x in tensors
        )

    def _decide(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], decided: Sequence[Any]
    ) -> Any:
        """Where shapes or paths depend on the numbers."""
        kind = operator(func)
        if kind.mutates:
            raise NotImplementedError(f"{kind.name} on numbers")
        one = kind.name != "_local_scalar_dense" or args[0].numel() == 1
        if one and decided and all(x is not None for x in decided):
            return decided[0] if len(decided) == 1 else tuple(decided)
        return self._standing(func(*self._with(args), **self._with(kwargs)))

    def _standing(self, out: Any) -> Any:
        if isinstance(out, Tensor):
            return self.stand_in(out)
        return type(out)(map(self._standing, out)) if isinstance(out, (list, tuple)) else out

    def _with(self, tree: Any) -> Any:
        """Arguments with their numbers."""
        return mapped(tree, self.value)

    def _shapes_of(self, kind: Operator, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """All on the meta device; a mask that selects as positions."""

        def shape(x: Tensor) -> Tensor:
            return x if x.is_meta else torch.empty_like(x, device=META)

        def places(x: Tensor | None) -> list[Tensor | None]:
            if x is None or x.dtype not in (torch.bool, torch.uint8):
                return [None if x is None else shape(x)]
            count = int(torch.count_nonzero(self.value(x)))
            return [torch.empty(count, dtype=torch.int64, device=META) for _ in x.shape]

        if kind.name in LOOKUPS:
            args = (args[0], [p for x in args[1] for p in places(x)], *args[2:])
        return mapped(args, shape), mapped(kwargs, shape)

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """How the storages of the results were made."""
        kind = operator(func)
        if kind.mutates:
            if torch.Tag.inplace_view not in func.tags:
                self._write(func, args, kwargs)
            return
        outs = (out,) if isinstance(out, Tensor) else tuple(tensors_in(out))
        fresh = [(i, x) for i, x in enumerate(outs) if self._address(x) not in self._of]
        if not fresh:  # views
            return
        if _size(kind.name, args, outs[0]) > LARGE:
            for _, x in fresh:
                self._set(x, Lazy((), partial(noise, numel(x), x.dtype)))
            return
        if "device" in kwargs:
            kwargs = {**kwargs, "device": None}
        like = kind.name.endswith("_like") or kind.name.startswith("new_")
        needs: list[Lazy] = []
        then, named = self._later(args, needs, like), self._later(kwargs, needs, like)
        constant = not needs

        def make() -> Any:
            found = _computed(func, now(then), now(named))
            return (found,) if isinstance(found, Tensor) else tuple(tensors_in(found))

        made = Lazy(needs, make)
        for i, x in fresh:
            self._set(x, Lazy((made,), partial(_one_of, made, i, x)))
            if constant and x.numel() <= SMALL:
                self._storage(x).get()

    def _write(self, func: Any, args: Any, kwargs: Any) -> None:
        """A storage that an operator writes to is another one from here on."""
        writes = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None]
        if writes != [0]:
            raise NotImplementedError(f"{func} writes to several tensors")
        x = args[0]
        before = self.seen(x)
        needs = [before.storage]
        then, named = self._later(args[1:], needs, False), self._later(kwargs, needs, False)

        def make() -> Tensor:
            numbers = before.storage.result.clone()
            _computed(func, (before.within(numbers), *now(then)), now(named))
            return numbers  # type: ignore[no-any-return]

        self._of[self._address(x)] = Lazy(needs, make)

    def _later(self, tree: Any, needs: list[Lazy], like: bool) -> Any:
        """Arguments that are computed when the result is; of some only the shape matters."""

        def kept(x: Tensor) -> Any:
            if not x.is_meta:
                return x.clone() if x.numel() <= COPIED else x
            if like:
                return torch.empty(x.shape, dtype=x.dtype)
            needs.append((seen := self.seen(x)).storage)
            return seen

        return mapped(tree, kept)

    def _address(self, x: Tensor) -> int:
        return x.untyped_storage()._cdata

    def _set(self, x: Tensor, numbers: Lazy) -> None:
        storage = x.untyped_storage()
        self._held.append(storage)
        self._of[storage._cdata] = numbers

    def _storage(self, x: Tensor) -> Lazy:
        """Of a tensor that was made elsewhere: ones."""
        found = self._of.get(self._address(x))
        if found is None:
            found = Lazy((), lambda: torch.ones(numel(x), dtype=x.dtype))
            self._set(x, found)
        return found


def _one_of(made: Lazy, i: int, x: Tensor) -> Tensor:
    return laid(made.result[i], x)


@cache
def _depends(func: Any) -> bool:
    """Does the shape of the result, or the result itself, depend on numbers?"""
    return not {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}.isdisjoint(
        func.tags
    )


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The same every time; random numbers are drawn beside the user's."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        out = func(*args, **kwargs)
        return out.zero_() if "empty" in operator(func).name else out
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return func(*args, **kwargs)


def _size(name: str, args: tuple[Any, ...], out: Tensor) -> int:
    """Of a product, in multiplications and additions."""
    if name == "convolution":
        x, weight = args[:2]
        passes = x if args[6] else out
        return passes.numel() * weight.numel() // max(1, weight.shape[0])
    if name in PRODUCTS or name == "linear":
        first = args[1] if name in ("addmm", "baddbmm") else args[0]
        return out.numel() * int(first.shape[-1])
    return 0
