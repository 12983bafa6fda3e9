"""What one operator costs, and which of its arguments are its factors.

Convolutions, matrix products and attention follow torch's own formulas
(`torch.utils.flop_counter`), divided by two. Products of a vector and the three-factor product of
`nn.Bilinear`, which torch counts as nothing, have their formulas here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from pipeline.units.trace.calls import operator, operator_name
from pipeline.units.trace.rules import RULES

FLOPS_PER_MAC = 2

Arguments = Mapping[str, Any]
"""Arguments of one call by their name in the operator's schema."""


def _vector_product(call: Arguments, name: str) -> int:
    """One MAC per entry of the matrix, or of the vector in a product of two vectors."""
    return int(call[name].numel())


def _trilinear(call: Arguments) -> int:
    """One MAC per point of the space that the three broadcast factors span. For `nn.Bilinear` that
    is batch x out x in1 x in2: one per weight and example, as in a linear layer."""
    shapes = []
    for tensor, new in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        shape = list(call[tensor].shape)
        for dim in call[new]:
            shape.insert(dim, 1)
        shapes.append(shape)
    return math.prod(max(sizes) for sizes in zip(*shapes, strict=True))


_OWN: Mapping[str, Callable[[Arguments], int]] = {
    "mv": lambda call: _vector_product(call, "self"),
    "addmv": lambda call: _vector_product(call, "mat"),
    "dot": lambda call: _vector_product(call, "self"),
    "vdot": lambda call: _vector_product(call, "self"),
    "addbmm": lambda call: int(call["batch1"].numel() * call["batch2"].shape[-1]),
    "_trilinear": _trilinear,
}

MATRICES: Mapping[str, tuple[str, str]] = {
    "mm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "bmm": ("self", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "_scaled_mm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
}
"""Products (..., m, k) @ (..., k, n) and their two factors."""

FILTERS: Mapping[str, tuple[str, ...]] = {
    "convolution": ("weight",),
    "_convolution": ("weight",),
    "cudnn_convolution": ("weight",),
    "convolution_overrideable": ("weight",),
    "_slow_conv2d_forward": ("weight",),
    "_trilinear": ("i1", "i2", "i3"),
}
"""Operators that use every entry of these factors equally often."""

_FREE = """
    arange argmax argmin argsort any all bernoulli bitwise_and bitwise_not bitwise_or bincount
    broadcast_tensors bucketize copy count_nonzero cummax cummin cumprod cumsum diag diag_embed diff
    dropout empty empty_strided equal expand_as eye fill fmod full gather heaviside histc im2col
    col2im index index_add index_copy index_fill index_put index_select is_same_size isin item
    kthvalue lift linspace linalg_vector_norm local_scalar_dense log_softmax logsumexp logcumsumexp
    masked_fill masked_scatter masked_select max_unpool2d max_unpool3d mean median meshgrid
    min_max mode multinomial nan_to_num native_dropout nll_loss_forward nonzero norm normal one_hot
    ones pow put rand randint randn randperm reciprocal repeat_interleave resize roll rot90 rrelu
    scalar_tensor scatter scatter_add scatter_reduce searchsorted select_scatter slice_scatter
    softmax sort split_with_sizes_copy squeeze_copy take topk trace tril tril_indices triu
    triu_indices unfold uniform unique unsafe_split unsafe_split_with_sizes where zero zeros
    _embedding_bag _embedding_bag_forward_only _fused_dropout _fused_rms_norm _local_scalar_dense
    _pack_padded_sequence _pad_packed_sequence _thnn_fused_gru_cell _thnn_fused_lstm_cell _unique2
    _assert_async _assert_tensor_metadata _native_batch_norm_legit_functional _weight_norm_interface
    aminmax std_mean var_mean sym_size sym_numel
    fractional_max_pool2d fractional_max_pool3d max_pool2d max_pool3d upsample_bicubic2d
    native_layer_norm_backward rms_norm index_reduce new_empty new_empty_strided new_full new_ones
    random exponential geometric cauchy log_normal set_ view_as_complex view_as_real _conj polar
"""
FREE = frozenset(_FREE.split())
"""Operators that multiply and add nothing that is counted, beside the elementwise ones, the views
and those that the tracer has a rule for."""


def macs_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """Multiply-accumulates of one call; None: the operator has no formula."""
    formula = flop_registry.get(func.overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=out)) // FLOPS_PER_MAC
    own = _OWN.get(operator_name(func)) if func.namespace == "aten" else None
    return None if own is None else own(_bound(func, args, kwargs))


def is_free(func: Any) -> bool:
    """Counted as nothing by the convention of this field: elementwise, normalisation, pooling,
    softmax, look-ups, movements of data."""
    kind = operator(func)
    if func.namespace in ("prim", "prims"):
        return True
    if func.namespace != "aten":
        return False
    return kind.pointwise or func.is_view or kind.name in RULES or kind.name in FREE


def factors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments of a counted operator that it multiplies."""
    name = operator_name(func)
    call = _bound(func, args, kwargs)
    names = MATRICES.get(name) or FILTERS.get(name, ())
    return [call[key] for key in names]


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(operator(func).names, args, strict=False)), **kwargs}
