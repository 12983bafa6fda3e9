"""Convex sets for constrained training: linear minimisation, feasibility, Euclidean projection.

A set constrains one tensor. Everything is computed on the tensor's device without synchronisation.
A set is described by plain numbers, so an optimizer can store it in its param groups.
Pokutta, Spiegel, Zimmer: "Deep Neural Network Training with Frank-Wolfe", arXiv 2010.07243.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from methods.sfw.largest import largest_signs


class ConvexSet(Protocol):
    """A feasible set for one tensor."""

    @property
    def diameter(self) -> float:
        """Largest Euclidean distance of two points of the set."""

    def lmo(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """A new vertex v that minimises <direction, v> over the set (linear minimisation oracle).

        `out` is scratch of the same shape that may hold the result.
        """

    def shift_inside(self, x: Tensor) -> Tensor:
        """`x` if it is feasible, else `x` scaled into the set; not the nearest point."""

    def euclidean_projection(self, x: Tensor) -> Tensor:
        """The nearest point of the set."""

    def contains(self, x: Tensor, tol: float = 1e-6) -> Tensor:
        """0-dim bool on x's device; `tol` is relative to the radius."""

    def plain(self) -> dict[str, Any]:
        """Numbers and strings from which `from_plain` rebuilds the set."""


@dataclass(frozen=True)
class KSparsePolytope:
    """Convex hull of all vectors with exactly k entries +-radius: ||x||_1 <= rk, ||x||_inf <= r.

    Raises:
        ValueError: k < 1 or radius <= 0.
    """

    k: int
    radius: float

    def __post_init__(self) -> None:
        _positive("k", self.k)
        _positive("radius", self.radius)

    @classmethod
    def of_diameter(cls, k: int, diameter: float) -> KSparsePolytope:
        return cls(k, diameter / (2.0 * math.sqrt(k)))

    @property
    def diameter(self) -> float:
        return 2.0 * self.radius * math.sqrt(self.k)

    def lmo(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """-r sign(d) at the k largest |d|; ties: the first in memory order; sign(0) = 0."""
        return largest_signs(direction, self.k, out).mul_(-self.radius)

    def shift_inside(self, x: Tensor) -> Tensor:
        """With u = x / ||x||_1: c r u, c = min(floor(1 / ||u||_inf), k). Scales, never clips."""
        l1, top = vector_norm(x, 1), vector_norm(x, math.inf)
        unit = x / l1
        count = (1.0 / vector_norm(unit, math.inf)).floor().clamp(1.0, float(self.k))
        inside = (l1 <= self.radius * self.k) & (top <= self.radius)
        return torch.where(inside, x, count * self.radius * unit)

    def euclidean_projection(self, x: Tensor) -> Tensor:
        return _project_l1_box(x, self.radius * self.k, self.radius)

    def contains(self, x: Tensor, tol: float = 1e-6) -> Tensor:
        bound = self.radius * (1.0 + tol)
        return (vector_norm(x, 1) <= bound * self.k) & (vector_norm(x, math.inf) <= bound)

    def plain(self) -> dict[str, Any]:
        return {"kind": "k_sparse", **asdict(self)}


@dataclass(frozen=True)
class LpBall:
    """||x||_p <= radius for tensors of n entries; p = 1, any p > 1, or infinity.

    Raises:
        ValueError: p < 1, n < 1 or radius <= 0.
    """

    p: float
    n: int
    radius: float

    def __post_init__(self) -> None:
        if not self.p >= 1.0:
            raise ValueError(f"p = {self.p}: a ball is convex for p >= 1 only")
        _positive("n", self.n)
        _positive("radius", self.radius)

    @classmethod
    def of_diameter(cls, p: float, n: int, diameter: float) -> LpBall:
        return cls(p, n, diameter / cls(p, n, 1.0).diameter)

    @property
    def diameter(self) -> float:
        """2 r n^(1/2 - 1/p) for p >= 2 (corner to corner), 2 r below (tip to tip)."""
        return 2.0 * self.radius * self.n ** max(0.0, 0.5 - 1.0 / self.p)

    def lmo(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """p = 1: -r sign(d) at the largest |d|; infinity: +r where d <= 0, else -r; otherwise the
        point where Hoelder's inequality is tight."""
        if self.p == 1.0:
            return KSparsePolytope(1, self.radius).lmo(direction, out)
        if self.p == math.inf:
            return self.radius * (1.0 - 2.0 * (direction > 0).to(direction.dtype))
        if self.p == 2.0:
            norm = vector_norm(direction)
            scale = torch.where(norm > 1e-10, -self.radius / norm, torch.zeros_like(norm))
            return torch.mul(direction, scale, out=out)
        q = self.p / (self.p - 1.0)
        norm = vector_norm(direction, q)
        sign = 1.0 - 2.0 * (direction < 0).to(direction.dtype)
        v = -self.radius * sign * (direction.abs() / norm) ** (q / self.p)
        return torch.where(norm > 0, v, torch.zeros_like(v))

    def shift_inside(self, x: Tensor) -> Tensor:
        norm = vector_norm(x, self.p)
        return torch.where(norm <= self.radius, x, x * (self.radius / norm))

    def euclidean_projection(self, x: Tensor) -> Tensor:
        """p = 1 soft-thresholds (Duchi et al. 2008), p = 2 scales, infinity clamps.

        Raises:
            ValueError: another p, for which no closed form is known.
        """
        if self.p == 1.0:
            return _project_l1_box(x, self.radius, self.radius)
        if self.p == 2.0:
            return self.shift_inside(x)
        if self.p == math.inf:
            return x.clamp(-self.radius, self.radius)
        raise ValueError(f"no closed-form Euclidean projection onto the L{self.p:g} ball")

    def contains(self, x: Tensor, tol: float = 1e-6) -> Tensor:
        return vector_norm(x, self.p) <= self.radius * (1.0 + tol)

    def plain(self) -> dict[str, Any]:
        return {"kind": "lp", **asdict(self)}


@dataclass(frozen=True)
class Unconstrained:
    """The whole space: every point is feasible, and there are no vertices."""

    @property
    def diameter(self) -> float:
        return math.inf

    def lmo(self, direction: Tensor, out: Tensor | None = None) -> Tensor:
        """
        Raises:
            ValueError: always, since a linear function has no minimum here; take a gradient step.
        """
        del out
        raise ValueError(f"no linear minimum over the whole space (shape {tuple(direction.shape)})")

    def shift_inside(self, x: Tensor) -> Tensor:
        return x

    def euclidean_projection(self, x: Tensor) -> Tensor:
        return x

    def contains(self, x: Tensor, tol: float = 1e-6) -> Tensor:
        del tol
        return torch.ones((), dtype=torch.bool, device=x.device)

    def plain(self) -> dict[str, Any]:
        return {"kind": "unconstrained"}


_KINDS: dict[str, type[KSparsePolytope] | type[LpBall] | type[Unconstrained]] = {
    "k_sparse": KSparsePolytope,
    "lp": LpBall,
    "unconstrained": Unconstrained,
}


def from_plain(plain: Mapping[str, Any]) -> ConvexSet:
    """Inverse of `ConvexSet.plain`.

    Raises:
        ValueError: unknown kind.
    """
    numbers = dict(plain)
    kind = numbers.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown constraint kind {kind!r} (known: {', '.join(_KINDS)})")
    return _KINDS[kind](**numbers)


@torch.no_grad()
def make_feasible(model: nn.Module, sets: Mapping[str, ConvexSet]) -> None:
    """Shift every parameter into its set; feasible parameters do not change."""
    for name, p in model.named_parameters():
        p.copy_(sets[name].shift_inside(p))


def polytope_k(n: int, k: int | None, k_frac: float | None) -> int:
    """Nonzeros per vertex for a tensor of n entries: the larger of k and k_frac n, at most n."""
    wanted = max(int(k or 0), int(k_frac * n) if k_frac is not None else 0)
    return min(wanted, n)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} = {value}: a constraint needs {name} > 0")


def _project_l1_box(x: Tensor, l1: float, box: float) -> Tensor:
    """Nearest point with ||.||_1 <= l1 and ||.||_inf <= box: sign(x) clip(|x| - t, 0, box).

    The norm of that point falls piecewise linearly in t >= 0, with kinks where an entry leaves
    the box (|x| - box) and where it reaches zero (|x|). Find the first of the sorted kinks at which
    the norm is at most l1, then interpolate back along its segment.
    """
    size = x.abs().double().flatten()
    kinks = torch.cat([(size - box).clamp_min(0.0), size])
    turn = torch.cat([-torch.ones_like(size), torch.ones_like(size)])
    kinks, order = kinks.sort(stable=True)
    slope = turn[order].cumsum(0)
    start = size.clamp_max(box).sum()
    widths = kinks.diff(prepend=kinks.new_zeros(1))
    slope_before = torch.cat([slope.new_zeros(1), slope[:-1]])
    norms = start + (slope_before * widths).cumsum(0)
    first = (norms <= l1).int().argmax()  # the last kink has norm 0, up to rounding
    back = (l1 - norms[first]) / slope_before[first].clamp_max(-1.0)
    threshold = torch.where(start <= l1, 0.0, kinks[first] + back)
    return x.sign() * (x.abs() - threshold.to(x.dtype)).clamp(0.0, box)
