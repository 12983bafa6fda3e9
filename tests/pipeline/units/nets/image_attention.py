"""Attention over the positions of an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.pipeline.units.cases import Net, case, conv, pooled


@case(6 + 5)
def non_local() -> nn.Module:
    """One head over the positions of an image: features of theta and phi, channels of g."""

    def run(n: Any, x: Tensor) -> Tensor:
        theta, phi, g = (layer(x).flatten(2) for layer in (n.theta, n.phi, n.g))
        weights = (theta.transpose(1, 2) @ phi).softmax(-1)
        return pooled(n.out((g @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])))

    layers = {"theta": conv(3, 6, 1), "phi": conv(3, 6, 1), "g": conv(3, 5, 1)}
    return Net(run, **layers, out=conv(5, 4, 1))


@case(6, attention="query_key")
def non_local_theta_and_phi() -> nn.Module:
    return non_local()
