"""Norms by a mean over channels that lose channels.

RMS norm: y = x / sqrt(mean(x^2) + eps) * w. Over channels that are zero the sum of squares stays
and the mean grows by r = all / kept. With w' = w sqrt(r) and eps' = eps r the smaller norm gives
what the larger one gave.

Global response normalisation (ConvNeXt V2): y = x + b + w x g / (mean(g) + eps), g the norm of
each channel over the image: w' = w r, eps' = eps r.

Whether a layer is such a norm is found by trying it, not by its name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.units.groups import NormKind
from pipeline.units.modules import own_shapes, sizes

ALL, KEPT = 7, 3
NEVER = (_ConvNd, nn.Linear, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.Embedding, nn.PReLU)
"""Known to be something else."""
TOLERANCE = 1e-12
NUMBERS = (type(None), bool, int, float, str)
EPS = 0.3
"""Large enough that an eps that is not scaled shows."""


class AllDouble(TorchDispatchMode):
    """Casts to float32 stay in float64, and constants are made there: norms cast, and would agree
    to 1e-7 only; tables of positions are float32 whatever the network is."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("dtype")
        casts = func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64
        if casts and wanted is not None and wanted.is_floating_point:
            kwargs["dtype"] = torch.float64
        out = func(*args, **kwargs)
        made = func is torch.ops.aten.lift_fresh.default or not any(
            isinstance(a, Tensor) and a.is_floating_point() for a in (*args, *kwargs.values())
        )
        single = made and isinstance(out, Tensor) and out.dtype == torch.float32
        return out.double() if single else out


def norm_kind(layer: nn.Module) -> NormKind | None:
    """How `layer` is scaled when zero channels go; None if it is no norm of this kind."""
    own = {k: p for k, p in layer._parameters.items() if p is not None}
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__
    if hooked or layer._buffers or not 1 <= len(own) <= 2 or not _only_calls(layer):
        return None
    if any(p.ndim != 1 for p in own.values()):
        return None
    numbers = [k for k, v in vars(layer).items() if type(v) is float]
    if isinstance(layer, nn.RMSNorm):
        numbers = ["eps"]
    for weight, eps, dim in product(own, numbers, (-1, 1)):
        if len(own) == 2:
            kinds = [NormKind(weight, eps, 0.0, dim, power=1.0)]
        else:
            kinds = [NormKind(weight, eps, offset, dim) for offset in (0.0, 1.0)]
        for kind in kinds:
            if _is_exact(layer, kind):
                return kind
    return None


def _only_calls(layer: nn.Module) -> bool:
    """Its children hold nothing: an activation that the norm calls at its end, a dropout."""
    return not any(m._parameters or m._buffers for m in layer.modules() if m is not layer)


def norm_kinds(layers: Mapping[str, nn.Module]) -> dict[str, NormKind]:
    """RMS norms by path; layers of one class with equal settings are tried once."""
    found: dict[str, NormKind] = {}
    tried: dict[Any, NormKind | None] = {}
    for path, layer in layers.items():
        if 1 <= len(layer._parameters) <= 2 and not isinstance(layer, NEVER):
            plain = {k: v for k, v in vars(layer).items() if isinstance(v, (int, float, str))}
            key = (type(layer), tuple(sorted((k, repr(v)) for k, v in plain.items())))
            if key not in tried:
                tried[key] = norm_kind(layer)
            if (kind := tried[key]) is not None:
                found[path] = kind
    return found


def holds(layer: nn.Module, kind: NormKind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Is the norm of this kind also as it is called: with tensors of the shape of what it norms (a
    gate, a residual), which lose the same channels, and numbers?"""
    x, *more = [*args, *kwargs.values()]
    if not more:
        return True
    known = all(
        a.shape == x.shape if isinstance(a, Tensor) else isinstance(a, NUMBERS) for a in more
    )
    leads = ((2, 2, 3), (2, 3))
    return known and any(_agrees(layer, kind, lead, (args, kwargs)) for lead in leads)


def rescale(layer: nn.Module, kind: NormKind, ratio: float, alone: bool = True) -> None:
    """In place, once the channels are gone.

    Args:
        ratio: channels before over channels now.
        alone: False leaves the weight as it is: another norm has it too, and was scaled before.
    """
    weight = layer._parameters[kind.weight]
    assert weight is not None
    eps = getattr(layer, kind.eps)
    if eps is None:  # torch takes that of the type
        eps = torch.finfo(weight.dtype).eps
    if alone:
        with torch.no_grad():
            weight.add_(kind.offset).mul_(ratio**kind.power).sub_(kind.offset)
    setattr(layer, kind.eps, eps * ratio)


def _is_exact(layer: nn.Module, kind: NormKind) -> bool:
    """On images, and on sequences for a forward that takes nothing else."""
    flat = kind.dim == -1 and kind.power != 1
    return _agrees(layer, kind, (2, 2, 3)) or (flat and _agrees(layer, kind, (2, 3)))


def _agrees(
    layer: nn.Module,
    kind: NormKind,
    lead: tuple[int, ...],
    call: tuple[tuple[Any, ...], dict[str, Any]] = ((None,), {}),
) -> bool:
    """`call`: arguments to try it with, the first is what it norms."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((), (), lead)
    weight, shift, x = (torch.randn(*s, ALL, generator=generator).double() for s in sizes)
    shift[KEPT:], x[..., KEPT:] = 0, 0
    want = _scaled(x, weight, kind) if kind.power != 1 else _responded(x, weight, shift)

    def laid(y: Tensor) -> Tensor:
        return y.movedim(-1, kind.dim)

    args, kwargs = call
    given = [torch.randn(*lead, ALL, generator=generator).double() for _ in (*args, *kwargs)]
    given[0] = x
    for y in given:
        y[..., KEPT:] = 0  # the tracer tells what must be zero there

    def run(n: int, bare: bool) -> Any:
        norm = _resized(layer, kind, weight[:n], shift[:n], bare)
        if n < ALL:
            rescale(norm, kind, ALL / n)
        if bare:
            return norm.forward(laid(x[..., :n]).clone())  # not the hooks: it is one that tries it
        own = iter([laid(y[..., :n]).clone() for y in given])
        first, *more = [(next(own), a) for a in (*args, *kwargs.values())]
        told = [first[0], *(y if isinstance(a, Tensor) else a for y, a in more)]
        return norm.forward(*told[: len(args)], **dict(zip(kwargs, told[len(args) :], strict=True)))

    try:
        with torch.no_grad(), AllDouble():
            whole, part, called, less = (run(n, b) for b in (True, False) for n in (ALL, KEPT))
            called = called.narrow(kind.dim, 0, KEPT)
            right = bool((called - less).abs().max() < TOLERANCE)
    except Exception:  # whatever a layer that is no norm raises
        return False
    if not (isinstance(whole, Tensor) and whole.shape == laid(x).shape and part.dtype == x.dtype):
        return False
    alone = torch.zeros_like(whole).index_copy_(kind.dim, torch.arange(KEPT), part)
    return right and all(bool((whole - y).abs().max() < TOLERANCE) for y in (alone, laid(want)))


def _scaled(x: Tensor, weight: Tensor, kind: NormKind) -> Tensor:
    """An RMS norm of x: (batch, height, width, channels)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * (weight + kind.offset)


def _responded(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """A global response normalisation of it."""
    norms = x.square().sum((1, 2), keepdim=True).sqrt()
    return x + shift + weight * x * norms / (norms.mean(-1, keepdim=True) + EPS)


def _resized(
    layer: nn.Module, kind: NormKind, weight: Tensor, shift: Tensor, bare: bool
) -> nn.Module:
    """A copy without the memory of the original, with these parameters and a large eps. `bare`:
    its children do nothing, so that it is known what it should give."""
    new = copy.copy(layer)
    new.__dict__ = dict(layer.__dict__)
    given = {
        k: weight if k == kind.weight else shift
        for k, p in layer._parameters.items()
        if p is not None
    }
    new._parameters = {k: nn.Parameter(x.clone(), requires_grad=False) for k, x in given.items()}
    children = {k: m for k, m in layer._modules.items() if m is not None}
    new._modules = {
        k: nn.Identity() if bare else copy.deepcopy(m).eval() for k, m in children.items()
    }
    for key, value in sizes(new, own_shapes(new)).items():
        setattr(new, key, value)
    setattr(new, kind.eps, EPS)
    return new
