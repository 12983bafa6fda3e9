"""Random widths: a control for methods that learn how wide each layer should be.

Each layer draws u in (narrowest, 1] and keeps about t u of its units, with one t for all layers,
rounded to whole units. As t grows from 0, units return one by one, so random widths are an ordinary
ranking and meet a budget as closely as any other:

    unit j of n returns at  t u n > j + 1/2,  so its score is  u n / (j + 1/2),  j = 0, 1, ...

The given saliency decides which units a layer keeps. `narrowest: 1` gives uniform widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor


def random_widths(
    saliency: Mapping[str, Tensor], seed: int, narrowest: float = 0.0
) -> dict[str, Tensor]:
    """Scores in double precision that rank all units together.

    They depend on the seed and the layer's name only, so a layer's draw is independent of others.
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
