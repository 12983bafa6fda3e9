"""Row kernels: the ZIGs of a network as one long vector of channels.

Optimizers of the OTO family decide per channel ("row"): its norm, an inner product, a factor. Here
the channels of all groups stand in one vector of `count` entries. Parameters are only ever read and
scaled in place along their channel dimension; whatever is irregular about an index (concat,
flatten, heads) is settled on short vectors, one entry per position. No row is copied and nothing
waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.units.groups import ChannelGroup, Units
from pipeline.units.scratch import PIECE, Scratch


@dataclass(frozen=True, eq=False)
class _Part:
    """One parameter that carries channels along `dim`; `owner[i]` is the channel that position i
    belongs to, -1 for none."""

    parameter: nn.Parameter
    dim: int
    owner: Tensor

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(d for d in range(self.parameter.ndim) if d != self.dim)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(-1 if d == self.dim else 1 for d in range(self.parameter.ndim))


class Rows:
    """The zero-invariant parts of channel groups, channel by channel.

    A parameter may be shared out over several groups by position (a BatchNorm after a concat), and
    may have positions that belong to none. Buffers are left out.

    Args:
        parameters: name -> parameter; all names of a tied parameter may be present.
        groups: disjoint channel groups; one without any parameter here is dropped.
        frozen: also take parameters that require no gradient (to measure, not to train).

    Attributes:
        groups: the groups taken; `sizes` their numbers of channels; `count` channels in total.
        params: the distinct parameters, in the order of every list this class takes or gives;
            `named` the same by all their names.
        entries: shape (count,): number of weights of each channel, in `dtype`.
        parameters_of: shape (len(groups),): number of parameters a group has part in.
        shared: per parameter: whether it is shared out over several groups.
        group_of: shape (count,): position in `groups`; `group_size`: shape (len(groups),).

    Raises:
        ValueError: two channels claim the same weights.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        groups: Iterable[ChannelGroup],
        frozen: bool = False,
    ) -> None:
        usable = {n: p for n, p in parameters.items() if frozen or p.requires_grad}
        taken = tuple(g for g in groups if any(s.tensor in usable for s in g.zig))
        parts = _parts(usable, taken)
        self.groups = taken
        self.sizes = tuple(g.size for g in taken)
        self.count = sum(self.sizes)
        self.params = [p.parameter for p in parts]
        self._vectors = sum(p.parameter.ndim == 1 for p in parts)
        self._others = [p.others for p in parts]
        self._shapes = [p.shape for p in parts]
        self._lengths = [len(p.owner) for p in parts]
        self._index(parts)
        held = {id(p) for p in self.params}
        self.named = {n: p for n, p in usable.items() if id(p) in held}
        self._scratch = Scratch()

    def _index(self, parts: Sequence[_Part]) -> None:
        """Index vectors between positions, channels and groups, on the parameters' device."""
        none = torch.empty(0, dtype=torch.int64)
        device = self.params[0].device if parts else none.device
        owner = torch.cat([none, *(p.owner for p in parts)])
        widths = [torch.full_like(p.owner, p.parameter.numel() // len(p.owner)) for p in parts]
        width = torch.cat([none, *widths])
        owned = owner >= 0
        size = torch.tensor(self.sizes, dtype=torch.int64)
        positions = torch.where(owned, owner, self.count)
        self._owner = positions.to(device)
        order = torch.argsort(positions, stable=True)[: int(owned.sum())]
        self._order = order.to(device)
        self._positions = torch.bincount(owner[owned], minlength=self.count).to(device)
        entries = torch.zeros(self.count, dtype=torch.int64).index_add_(
            0, owner[owned], width[owned]
        )
        self.entries = entries.to(device, self.dtype)
        self.group_of = torch.repeat_interleave(torch.arange(len(size)), size).to(device)
        self.group_size = size.to(device)
        self._group_start = (size.cumsum(0) - size).to(device)
        group_of = self.group_of.cpu()
        owners = [group_of[p.owner[p.owner >= 0]].unique() for p in parts]
        self.shared = [len(o) > 1 for o in owners]
        flat = torch.cat([none, *owners])
        self.parameters_of = torch.bincount(flat, minlength=len(size)).to(device)

    @property
    def dtype(self) -> torch.dtype:
        """Of all per-channel vectors: the parameters' own, at least float32."""
        own = self.params[0].dtype if self.params else torch.float32
        return torch.promote_types(own, torch.float32)

    def square_norms(
        self,
        tensors: Sequence[Tensor] | None = None,
        dtype: torch.dtype | None = None,
        weights: Sequence[float] = (),
    ) -> Tensor:
        """||x||^2 of every channel of `params` (or of tensors shaped like them), shape (count,),
        summed in `dtype`; with one weight >= 0 per parameter, the weighted sum."""
        kind = dtype or self.dtype
        values = [t.detach() for t in (self.params if tensors is None else tensors)]
        wide = len(values) - self._vectors
        norms = [
            torch.linalg.vector_norm(x, dim=others, dtype=kind)
            for x, others in zip(values[:wide], self._others, strict=False)
        ]
        pieces = norms + [x.to(kind) for x in values[wide:]]
        if weights:
            pieces = [x * math.sqrt(w) for x, w in zip(pieces, weights, strict=True)]
        return self._sum_positions(torch.cat(pieces).square_())

    def dots(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """<a, b> of every channel, shape (count,); `a`, `b` are shaped like `params`."""
        pairs = [(x.detach(), y.detach()) for x, y in zip(a, b, strict=True)]
        sums = [
            torch.mul(x, y, out=self._scratch.like(x)).sum(others, dtype=self.dtype)
            if others
            else (x * y).to(self.dtype)
            for (x, y), others in zip(pairs, self._others, strict=True)
        ]
        return self._sum_positions(torch.cat(sums))

    def gram(self, a: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """||x||^2, <a, x> and ||a||^2 of every channel at once, to the last bit those of
        `square_norms` and `dots`: each piece of memory is read while it is near."""
        kind, found = self.dtype, tuple(list[Tensor]() for _ in range(3))
        pairs = zip(self.params, a, strict=True)
        for pair, others, shape in zip(pairs, self._others, self._shapes, strict=True):
            for x, y in _pieces(*pair, along=shape.index(-1)):
                if others:
                    product = torch.mul(x, y, out=self._scratch.like(x))
                    of = (
                        torch.linalg.vector_norm(x, dim=others, dtype=kind),
                        product.sum(others, dtype=kind),
                        torch.linalg.vector_norm(y, dim=others, dtype=kind),
                    )
                else:
                    of = (x.to(kind), (x * y).to(kind), y.to(kind))
                for numbers, values in zip(found, of, strict=True):
                    numbers.append(values)
        norms, inner, slopes = (torch.cat(numbers) for numbers in found)
        squares = (self._sum_positions(n.square_()) for n in (norms, slopes))
        return next(squares), self._sum_positions(inner), next(squares)

    def spread(self, values: Tensor, elsewhere: float) -> list[Tensor]:
        """A per-channel vector as factors that broadcast over each of `params`.

        `elsewhere` stands at positions that belong to no channel.
        """
        table = torch.cat([values, values.new_full((1,), elsewhere)])
        pieces = table.index_select(0, self._owner).split(self._lengths)
        return [
            piece.view(shape).to(p.dtype)
            for piece, shape, p in zip(pieces, self._shapes, self.params, strict=True)
        ]

    def scale_(self, values: Tensor) -> None:
        """Multiply every channel by its entry of `values`, in place."""
        torch._foreach_mul_(self.params, self.spread(values, 1.0))

    def sum_groups(self, values: Tensor) -> Tensor:
        """Sum of a per-channel vector over each group, shape (len(groups),)."""
        kind = values if values.is_floating_point() else values.to(self.dtype)
        return torch.segment_reduce(kind, "sum", lengths=self.group_size, unsafe=True)

    def rank_in_groups(self, keys: Tensor) -> Tensor:
        """Rank of every channel within its group by increasing key, 0-based; ties by position."""
        by_key = torch.argsort(keys, stable=True)
        order = by_key[torch.argsort(self.group_of[by_key], stable=True)]
        group = self.group_of[order]
        rank = torch.arange(self.count, device=keys.device) - self._group_start[group]
        return torch.empty_like(rank).scatter_(0, order, rank)

    def own(self) -> Rows:
        """The same channels without the parameters that are shared out over several groups."""
        shared = {id(p) for p, s in zip(self.params, self.shared, strict=True) if s}
        own = {n: p for n, p in self.named.items() if id(p) not in shared}
        return Rows(own, self.groups, frozen=True)

    def rank(self, keys: Tensor) -> Tensor:
        """Rank of every channel among all by increasing key, 0-based; ties by position."""
        order = torch.argsort(keys, stable=True)
        return torch.empty_like(order).scatter_(
            0, order, torch.arange(self.count, device=keys.device)
        )

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """A per-channel vector by group name."""
        pieces = values.split(self.sizes)
        return {g.name: v for g, v in zip(self.groups, pieces, strict=True)}

    def summary(self) -> dict[str, float]:
        """group_sparsity: fraction of zero channels; omega: sum of channel norms. Reads the device
        once: for the end of an epoch."""
        if not self.count:
            return {"group_sparsity": 0.0, "omega": 0.0}
        square = self.square_norms(dtype=torch.float64)
        numbers = torch.stack([(square == 0).double().mean(), square.sqrt().sum()]).tolist()
        return {"group_sparsity": numbers[0], "omega": numbers[1]}

    def _sum_positions(self, values: Tensor) -> Tensor:
        # a gather and a segmented sum, not index_add_: bit-reproducible on a GPU too
        rows = values.index_select(0, self._order)
        return torch.segment_reduce(rows, "sum", lengths=self._positions, unsafe=True)


def _pieces(a: Tensor, b: Tensor, along: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of two tensors, few enough to stay in a CPU's caches."""
    a, b = a.detach(), b.detach()
    if a.device.type != "cpu" or along != 0 or a.numel() <= PIECE:
        return iter(((a, b),))
    rows = max(1, PIECE * len(a) // a.numel())
    return zip(a.split(rows), b.split(rows), strict=True)


def _parts(parameters: Mapping[str, nn.Parameter], groups: Sequence[ChannelGroup]) -> list[_Part]:
    """The parameters that carry channels, wide ones first, each position with its channel."""
    parts: dict[int, _Part] = {}
    first = 0
    for group in groups:
        channels = torch.arange(first, first + group.size)
        first += group.size
        for piece in (s for s in group.zig if s.tensor in parameters):
            parameter = parameters[piece.tensor]
            fresh = torch.full((parameter.shape[piece.dim],), -1)
            part = parts.setdefault(id(parameter), _Part(parameter, piece.dim, fresh))
            claim = channels[:, None].expand_as(piece.index)
            held = part.owner[piece.index]
            if part.dim != piece.dim or bool(((held != -1) & (held != claim)).any()):
                raise ValueError(
                    f"{piece.tensor!r}: weights belong to two channels ({group.name!r})"
                )
            part.owner[piece.index] = claim
    return sorted(parts.values(), key=lambda p: p.parameter.ndim == 1)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every name of every parameter; a tied parameter appears under each of its names."""
    return dict(model.named_parameters(remove_duplicate=False))


def branch_norms(model: nn.Module, units: Units) -> dict[str, Tensor]:
    """Euclidean norm of the last layer of every branch; 0 only where all of its weights are."""
    named = named_parameters(model)
    found = {}
    for group in units.prunable:
        if group.kind == "branch":
            weights = [named[s.tensor].detach().double() for s in group.zig]
            found[group.name] = torch.stack([w.norm() for w in weights]).norm()[None]
    return found


def zig_norms(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Euclidean norm of every ZIG by group name, frozen parameters included; exactly 0 only where
    all weights are 0 (summed in double, so small rows do not underflow)."""
    rows = Rows(named_parameters(model), groups, frozen=True)
    return rows.split(rows.square_norms(dtype=torch.float64).sqrt()) if rows.count else {}
