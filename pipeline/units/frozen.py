"""Batch norms whose scale and shift are buffers: FrozenBatchNorm2d of torchvision and its kin.

A buffer is nothing that masking zeroes or a method measures, so a channel behind such a layer would
never be zero and never go. As parameters that ask for no gradient they are both, and train no more
than before.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


def is_frozen_norm(layer: nn.Module) -> bool:
    """Four vectors of one length with the names of a batch norm's, which torch's own it is not."""
    if isinstance(layer, _NormBase) or len(layer._parameters) + len(layer._buffers) < 4:
        return False
    own = {**layer._parameters, **layer._buffers}
    vectors = [own.get(name) for name in (*AFFINE, *STATISTICS)]
    shapes = {tuple(x.shape) for x in vectors if x is not None}
    return None not in vectors and len(shapes) == 1 and len(shapes.pop()) == 1


def with_frozen_parameters(model: nn.Module) -> nn.Module:
    """`model`, its frozen batch norms holding scale and shift as parameters without gradient.

    In place. Keys of the `state_dict`, outputs and what is trained stay as they are. Wherever the
    network is built again, this is called again.
    """
    for layer in model.modules():
        for name in AFFINE if is_frozen_norm(layer) else ():
            if name in layer._buffers:
                value = layer._buffers.pop(name)
                layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return model
