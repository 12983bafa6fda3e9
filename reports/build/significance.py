"""Is the difference of two methods more than luck of the seeds? Paired, exact, no normality.

Sign-flip permutation test: were there no difference, each paired difference could as well have the
other sign. p = share of the 2^n sign patterns whose mean is at least as far from zero. So n seeds
cannot give less than 2 / 2^n: 0.25 with three, 0.0625 with five. It says so instead of assuming a
distribution that three numbers cannot show.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import product

_EXACT = 16  # 65536 patterns; beyond that a fixed random sample of as many
_SLACK = 1e-9  # sums that are equal on paper differ in the last bits


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of paired differences.

    Raises:
        ValueError: no differences.
    """
    if not differences:
        raise ValueError("a test needs at least one pair")
    scale = math.fsum(abs(d) for d in differences)
    bound = abs(math.fsum(differences)) - _SLACK * scale
    hits = [
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) >= bound
        for signs in _patterns(len(differences))
    ]
    return sum(hits) / len(hits)


def smallest_p(n: int) -> float:
    """What `n` pairs can give at best."""
    return min(1.0, 2.0 ** (1 - n))


def holm(ps: Sequence[float]) -> list[float]:
    """The same p values for a reader who looks at all of them at once (Holm 1979)."""
    adjusted, largest = [1.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def _patterns(n: int) -> Iterator[tuple[int, ...]]:
    if n <= _EXACT:
        yield from product((1, -1), repeat=n)
        return
    yield (1,) * n  # what was observed
    draw = random.Random(n)
    for _ in range(2**_EXACT - 1):
        yield tuple(draw.choices((1, -1), k=n))
