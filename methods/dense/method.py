"""Dense training: the baseline, and the parent of every one-shot pruning.

SGD (or any optimizer of the recipe), nothing else. A weight is as salient as it is large
(Han et al., "Learning both Weights and Connections", NeurIPS 2015, arXiv:1506.02626): the default
saliency of `MethodBase`. Units: weights. Rule: `fraction`, or `none` for the dense network itself.
"""

from __future__ import annotations

from pipeline.registry import register_method
from pipeline.training.method import MethodBase
from pipeline.training.recipe import Strict


class DenseConfig(Strict):
    """Nothing to set: everything is in the recipe."""


@register_method("dense", DenseConfig)
class Dense(MethodBase):
    """Trains as the recipe says."""

    def __init__(self, config: DenseConfig) -> None:
        self.config = config
