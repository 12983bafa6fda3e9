"""Short cuts on the meta device answer exactly as torch does, mistakes included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

from pipeline.units.trace.calls import tensors_in
from pipeline.units.trace.shapes import run
from pipeline.units.trace.skipped.layouts import META

ATEN = torch.ops.aten
Args = tuple[Any, ...]


def answer(call: Callable[[], Any]) -> Any:
    """Shapes, types and memory layouts of the results, or the words of the error."""
    try:
        out = call()
    except (RuntimeError, IndexError) as error:
        return str(error)
    return [(tuple(x.shape), x.dtype, layout(x)) for x in tensors_in(out)]


def layout(x: Tensor) -> tuple[int, ...]:
    """Strides where they mean anything."""
    return tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1) if x.numel() else ()


def same(func: Any, *args: Any, **kwargs: Any) -> None:
    assert answer(lambda: run(func, args, kwargs)) == answer(lambda: func(*args, **kwargs))


sizes = st.integers(1, 4)
types = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64])


def tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, order: int = 0) -> Tensor:
    """With its dimensions laid out in memory in turn `order`."""
    dims = sorted(range(len(shape)), key=lambda d: (d * 7 + order * 3) % 11) if order else None
    if dims is None:
        return torch.empty(shape, dtype=dtype, device=META)
    stored = torch.empty([shape[d] for d in dims], dtype=dtype, device=META)
    back = [dims.index(d) for d in range(len(shape))]
    return stored.permute(back)


shapes = st.lists(sizes, min_size=1, max_size=4).map(tuple)


@given(shapes, shapes, types, types, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_elementwise(
    a: tuple[int, ...], b: tuple[int, ...], one: Any, two: Any, order: int, other: int
) -> None:
    x, y = tensor(a, one, order), tensor(b, two, other)
    for func in (ATEN.add.Tensor, ATEN.mul.Tensor, ATEN.div.Tensor, ATEN.mul_.Tensor):
        same(func, x, y)
        same(func, x, x)
    same(ATEN.mul.Tensor, x, tensor((), one))
    same(ATEN.add.Tensor, x, x, alpha=2)
    for func in (
        ATEN.relu.default,
        ATEN.gelu.default,
        ATEN.sigmoid.default,
        ATEN.hardtanh_.default,
    ):
        same(func, x)
    same(ATEN.mul.Scalar, x, 2.0)


@given(st.tuples(sizes, sizes, sizes, sizes), st.tuples(sizes, sizes, sizes, sizes), st.data())
@settings(max_examples=60, deadline=None)
def test_convolution(image: tuple[int, ...], weight: tuple[int, ...], data: Any) -> None:
    groups, stride, padding, dilation = (
        data.draw(st.sampled_from(v)) for v in ([1, 1, 2, 4], [1, 2], [0, 1, 2], [1, 2])
    )
    if data.draw(st.booleans()):  # make it fit
        image = (image[0], weight[1] * groups, *image[2:])
    x, w = tensor(image, order=data.draw(st.integers(0, 2))), tensor(weight)
    bias = data.draw(st.sampled_from([None, tensor((weight[0],)), tensor((3,))]))
    same(
        *(ATEN.convolution.default, x, w, bias, [stride] * 2, [padding] * 2, [dilation] * 2),
        *(data.draw(st.booleans()), [0, 0], groups),
    )


@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.booleans())
@settings(max_examples=60, deadline=None)
def test_products(a: tuple[int, ...], b: tuple[int, ...], fits: bool) -> None:
    if fits:
        b = (a[0], a[2], b[2])
    same(ATEN.bmm.default, tensor(a), tensor(b, order=1))
    same(ATEN.mm.default, tensor(a[1:]), tensor(b[1:], order=1))
    same(ATEN.addmm.default, tensor(b[2:]), tensor(a[1:]), tensor(b[1:]))
    same(ATEN.addmm.default, tensor((1,)), tensor(a[1:]), tensor(b[1:]))
    same(ATEN.mm.default, tensor(a[1:]), tensor(b[1:], torch.float64))


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(-4, 4), st.booleans())
@example([(1, 2, 1, 1), (1,)], -1, True)  # contiguous and channels-last at once
@settings(max_examples=60, deadline=None)
def test_cat(parts: list[tuple[int, ...]], dim: int, fits: bool) -> None:
    if fits:
        parts = [parts[0]] * len(parts)
    if all(len(p) > 1 for p in parts) and -len(parts[0]) <= dim < len(parts[0]):
        same(ATEN.cat.default, [tensor(p) for p in parts], dim)
        same(ATEN.cat.default, [tensor(p, order=1) for p in parts], dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("normed", [(4,), (3, 4), (5,), ()])
def test_norms_and_softmax(dtype: torch.dtype, order: int, normed: tuple[int, ...]) -> None:
    x = tensor((2, 3, 4), dtype, order)
    scale = tensor(normed, dtype)
    same(ATEN.native_layer_norm.default, x, list(normed), scale, scale, 1e-5)
    same(ATEN.native_layer_norm.default, x, list(normed), None, None, 1e-5)
    same(ATEN.native_layer_norm.default, x, list(normed), tensor((7,)), None, 1e-5)
    same(ATEN._safe_softmax.default, x, -1)
    same(ATEN._safe_softmax.default, x, 5)
    same(ATEN.mean.dim, x, [-1], True)
    same(ATEN.mean.dim, x, [1])
    stats = [tensor((3,), torch.float32) for _ in range(4)]
    out = run(ATEN.native_batch_norm.default, (x, *stats, False, 0.1, 1e-5), {})[0]
    assert answer(lambda: out) == answer(lambda: torch.empty_like(x))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 1), (3, 4), (5,)])
def test_copies_and_lookups(shape: tuple[int, ...], order: int) -> None:
    x = tensor(shape, order=order)
    same(ATEN.clone.default, x)
    for wanted in (torch.contiguous_format, torch.preserve_format):
        same(ATEN.clone.default, x, memory_format=wanted)
    same(ATEN.relu.default, x)
    same(ATEN.pow.Tensor_Scalar, x, 2)
    same(ATEN._softmax.default, x, -1, False)
    same(ATEN._softmax.default, x, 9, False)
    same(ATEN.roll.default, x, [1], [0])
    same(ATEN.roll.default, x, [1, 2], [0, len(shape) - 1])
    same(ATEN.roll.default, x, [1], [len(shape)])
    for size in ((6,), (2, 3)):
        for dtype in (torch.int64, torch.int32):
            places = tensor(size, dtype)
            same(ATEN.index.Tensor, x, [places])
            same(ATEN.index.Tensor, x, [None] * (len(shape) - 1) + [places])
            same(ATEN.index.Tensor, x, [None] * len(shape) + [places])
            same(ATEN.embedding.default, tensor((7, 3)), places)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1)])
def test_resized_images(shape: tuple[int, ...], order: int) -> None:
    for dtype in (torch.float32, torch.float16):
        x = tensor(shape, dtype, order)
        for func in (ATEN.upsample_bilinear2d, ATEN.upsample_bicubic2d):
            for size in ([8, 9], [2, 2], [1, 1]):
                same(func.default, x, size, False)
                same(func.vec, x, size, True, None)
            same(func.vec, x, None, False, [2.0, 1.5])
