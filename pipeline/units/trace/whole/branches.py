"""Branches of a residual stream: what is added to an identity, and everything that serves it alone.

y = x + f(x): where the last layer of f is zero, the block adds nothing, and f can go. The branch is
read off the data flow of the traced forward: all calls whose results reach the rest of the network
only through that addition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from pipeline.units.groups import ChannelGroup, Role, Slice, layer_of
from pipeline.units.trace.calls import Call
from pipeline.units.trace.shadow import ParamView, Value

LAYERS = frozenset({"linear", "addmm", "mm", "convolution"})
NORMS = frozenset({"native_batch_norm", "batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
MOVES = frozenset(
    {"view", "permute", "transpose", "t", "clone", "contiguous", "_to_copy", "detach", "alias"}
    | {"expand", "lift_fresh", "as_strided", "slice", "roll", "constant_pad_nd"}
)
"""Operators that leave zeros zero, whatever their other arguments are."""

StaysZero = Callable[[Call, int], bool]


@dataclass(eq=False)
class _Node:
    """One call.

    Attributes:
        needs: numbers of the calls whose results it reads, and who reads its own in turn.
        reads: parameters and buffers.
        zeroed: parameters that, being zero, make its result zero; none where `through` may do that:
            the call whose result alone decides.
        sides: of an addition of two activations: the calls that made them.
    """

    name: str
    needs: set[int]
    reads: tuple[str, ...]
    zeroed: tuple[str, ...] = ()
    through: int | None = None
    sides: tuple[int, int] | None = None
    readers: set[int] = field(default_factory=set)


class Flow:
    """The calls of a forward and who reads whose results.

    Args:
        trained: names of parameters.
        stays_zero: is the result of an elementwise call zero where the operands of these bits are?
    """

    def __init__(self, trained: frozenset[str], stays_zero: StaysZero) -> None:
        self.trained, self.stays_zero = trained, stays_zero
        self.nodes: list[_Node] = []
        self.made: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.outputs: set[int] = set()

    def see(self, call: Call, values: Mapping[int, Value]) -> None:
        """After the call has run; `values` are those of before."""
        views = {id(x): v for x in call.tensors if isinstance(v := values.get(id(x)), ParamView)}
        needs = {n for x in call.tensors for n in self._makers(x)}
        node = _Node(call.name, needs, tuple({v.name: None for v in views.values()}))
        data = [x for x in call.tensors if id(x) not in views and self._makers(x)]
        sources = [max(self._makers(x)) for x in data]
        if call.name == "add" and len(data) == 2 and call.args.get("alpha", 1) == 1:
            node.sides = (sources[0], sources[1])
        elif call.name in LAYERS and len(data) == 1:
            node.zeroed = self._all_trained(views.values())
        elif call.name.removeprefix("_") in NORMS or call.name.startswith("_native_batch_norm"):
            scale = (values.get(id(call.get(k))) for k in ("weight", "bias"))
            node.zeroed = self._all_trained(v for v in scale if isinstance(v, ParamView))
        elif call.name in MOVES and sources:
            node.through = sources[0]
        elif len(data) == 1 and call.pointwise and self.stays_zero(call, self._bits(call, data)):
            node.through = sources[0]
            scales = [x for x in call.tensors if id(x) in views]
            if scales and self.stays_zero(call, self._bits(call, scales)):
                node.zeroed = self._all_trained(views.values())
        self._append(node, call)

    def carry(self, new: torch.Tensor, old: torch.Tensor) -> None:
        """`new` was made by the call that made `old`."""
        if makers := self._makers(old):
            self.made[id(new)] = max(makers)

    def _append(self, node: _Node, call: Call) -> None:
        number = len(self.nodes)
        for n in node.needs:
            self.nodes[n].readers.add(number)
        self.nodes.append(node)
        for out in call.outs:
            self.made[id(out)] = number
            if call.mutates:
                self.written[out.untyped_storage()._cdata] = number

    def _makers(self, tensor: torch.Tensor) -> set[int]:
        """The call that made a tensor, and the last that wrote into its memory."""
        found = {self.made[id(tensor)]} if id(tensor) in self.made else set()
        if found and (last := self.written.get(tensor.untyped_storage()._cdata)) is not None:
            found.add(last)
        return found

    def _all_trained(self, views: Iterable[ParamView]) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(view.name for view in views))
        return names if names and self.trained.issuperset(names) else ()

    def _bits(self, call: Call, chosen: list[torch.Tensor]) -> int:
        ids = {id(x) for x in chosen}
        return sum(1 << i for i, x in enumerate(call.tensors) if id(x) in ids)

    def close(self, outputs: Iterable[torch.Tensor]) -> None:
        """These tensors leave the network."""
        for x in outputs:
            self.outputs |= self._makers(x)

    # -- reading it ---------------------------------------------------------------------------

    def branches(self, shapes: Mapping[str, tuple[int, ...]]) -> list[ChannelGroup]:
        """A group of one unit per branch, in forward order."""
        found: list[ChannelGroup] = []
        names: dict[str, int] = {}
        readers = self._readers()
        for number, node in enumerate(self.nodes):
            for skip, branch in (node.sides, node.sides[::-1]) if node.sides else ():
                inside = self._serving(branch, number)
                own = self._own(inside, readers)
                zeroed = self._zeroed(branch, inside)
                if skip in self._entering(inside) and zeroed and own.issuperset(zeroed):
                    found.append(_group(zeroed, own, shapes, names))
                    break
        return found

    def _readers(self) -> dict[str, set[int]]:
        readers: dict[str, set[int]] = {}
        for number, node in enumerate(self.nodes):
            for name in node.reads:
                readers.setdefault(name, set()).add(number)
        return readers

    def _serving(self, branch: int, addition: int) -> set[int]:
        """Calls whose results reach the rest only through this side of the addition."""
        if self.nodes[branch].readers != {addition} or branch in self.outputs:
            return set()
        inside, waiting = {branch}, set(self.nodes[branch].needs)
        while waiting:
            number = max(waiting)  # later calls first: all its readers have been decided
            waiting.remove(number)
            if number not in self.outputs and self.nodes[number].readers <= inside:
                inside.add(number)
                waiting |= self.nodes[number].needs
        return inside

    def _own(self, inside: set[int], readers: Mapping[str, set[int]]) -> set[str]:
        read = {name for number in inside for name in self.nodes[number].reads}
        return {name for name in read if readers[name] <= inside}

    def _entering(self, inside: set[int]) -> set[int]:
        return {n for number in inside for n in self.nodes[number].needs} - inside

    def _zeroed(self, branch: int, inside: set[int]) -> tuple[str, ...]:
        """The parameters that make the branch zero, the last of its way first."""
        number: int | None = branch
        while number is not None and number in inside:
            if self.nodes[number].zeroed:
                return self.nodes[number].zeroed
            number = self.nodes[number].through
        return ()


def _group(
    zeroed: tuple[str, ...],
    own: set[str],
    shapes: Mapping[str, tuple[int, ...]],
    names: dict[str, int],
) -> ChannelGroup:
    def whole(name: str, role: Role) -> Slice:
        return Slice(name, 0, role, torch.arange(shapes[name][0])[None])

    slices = [whole(name, "producer") for name in zeroed]
    order = [name for name in shapes if name in own and name not in zeroed and shapes[name]]
    slices += [whole(name, "consumer") for name in order]
    name = f"{layer_of(zeroed[0])} (branch)"
    names[name] = names.get(name, 0) + 1
    label = name if names[name] == 1 else f"{name}~{names[name]}"
    return ChannelGroup(label, 1, tuple(slices), kind="branch")
