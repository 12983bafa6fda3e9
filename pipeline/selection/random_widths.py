"""Random widths: the control of every method that learns how wide each layer should be.

Each layer draws a number u in (narrowest, 1] and keeps about t u of its units, one t for all:
rounded to whole units, never more than there are. Growing t from 0 brings the units back one by
one, so random widths are a ranking as any other and meet a budget as closely as any other:

    unit j of n comes back at  t u n > j + 1/2,  its score is  u n / (j + 1/2),  j = 0, 1, ...

Which units a layer keeps is up to the saliency it came with. `narrowest: 1` are uniform widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor


def random_widths(
    saliency: Mapping[str, Tensor], seed: int, narrowest: float = 0.0
) -> dict[str, Tensor]:
    """Scores in double precision, by which to rank all units together.

    A function of the seed and the names: what one layer draws does not depend on the others.
    """
    scores = {}
    for name, s in saliency.items():
        draw = 1.0 - (1.0 - narrowest) * Random(f"widths/{seed}/{name}").random()
        flat = s.detach().flatten()
        places = torch.argsort(flat, stable=True).flip(0)  # of equals the later comes first
        steps = torch.arange(flat.numel(), dtype=torch.float64, device=s.device)
        ranked = torch.empty_like(steps)
        ranked[places] = draw * flat.numel() / (steps + 0.5)
        scores[name] = ranked.view_as(s)
    return scores
