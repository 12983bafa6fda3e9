"""Sign-flip permutation test of paired differences: exact, no normality assumed.

Under the null hypothesis each paired difference could equally have the opposite sign. p is the
share of the 2^n sign patterns whose mean is at least as far from zero as the observed one. So n
seeds cannot give less than 2 / 2^n: 0.25 with three, 0.0625 with five.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import product

_EXACT = 16  # 65536 patterns; with more pairs, a fixed random sample of the same size
_SLACK = 1e-9  # sums that are mathematically equal differ in the last bits


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
    """The smallest p that `n` pairs can give."""
    return min(1.0, 2.0 ** (1 - n))


def holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted for multiple comparisons (Holm 1979)."""
    adjusted, largest = [1.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def _patterns(n: int) -> Iterator[tuple[int, ...]]:
    if n <= _EXACT:
        yield from product((1, -1), repeat=n)
        return
    yield (1,) * n  # the observed signs
    draw = random.Random(n)
    for _ in range(2**_EXACT - 1):
        yield tuple(draw.choices((1, -1), k=n))
