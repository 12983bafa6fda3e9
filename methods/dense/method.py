"""Dense training: the baseline, and the starting point of one-shot pruning.

Trains with the recipe's optimizer and nothing else. The saliency of a weight is its magnitude
(Han et al., "Learning both Weights and Connections", NeurIPS 2015, arXiv:1506.02626), the default
of `MethodBase`. Units: weights. Rule: `fraction`, or `none` for the dense network itself.
"""

from __future__ import annotations

from pipeline.registry import register_method
from pipeline.training.method import MethodBase
from pipeline.training.recipe import Strict


class DenseConfig(Strict):
    """No settings: the recipe has them all."""


@register_method("dense", DenseConfig)
class Dense(MethodBase):
    """Trains with the recipe."""

    def __init__(self, config: DenseConfig) -> None:
        self.config = config
