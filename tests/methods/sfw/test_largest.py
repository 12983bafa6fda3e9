"""The k largest entries, against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.sfw import largest
from methods.sfw.largest import largest_signs
from pipeline.selection.threshold import SAMPLE


def _by_sorting(x: Tensor, k: int) -> Tensor:
    """The definition: stable sort by decreasing magnitude, so ties remain in order."""
    order = x.abs().flatten().argsort(descending=True, stable=True)[:k]
    signs = torch.zeros_like(x).flatten()
    signs[order] = x.flatten()[order].sign()
    return signs.view_as(x)


def _on_device(x: Tensor, k: int) -> Tensor:
    """The code path of a GPU, run on the CPU."""
    mask = largest._mask_on_device(x.abs().flatten(), k).to(x.dtype)
    return mask.view_as(x) * x.sign()


few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e-30, -1e-30, 1e30])
lists = st.lists(few_values | st.floats(-10, 10, width=32), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(values=lists, share=st.floats(0.0, 1.0), double=st.booleans())
def test_small_tensors_with_many_ties(values: list[float], share: float, double: bool) -> None:
    x = torch.tensor(values, dtype=torch.float64 if double else torch.float32)
    k = 1 + int(share * (len(values) - 1))
    expected = _by_sorting(x, k)
    assert torch.equal(largest_signs(x, k), expected)
    assert torch.equal(_on_device(x, k), expected)


def _large(kind: str, n: int) -> Tensor:
    x = torch.randn(n, generator=torch.Generator().manual_seed(1))
    if kind == "rounded":
        return (x * 4).round() / 4
    if kind == "mostly zero":
        return x * (x.abs() > 2.5)
    if kind == "constant":
        return torch.full((n,), -0.5)
    if kind == "sorted":
        return x.sort().values
    if kind == "hidden from the sample":
        x = torch.ones(n)
        x[1:n:SAMPLE] = 2.0
        return x
    if kind == "heavy":
        return x**7
    return x


@pytest.mark.parametrize(
    "kind",
    ["normal", "rounded", "mostly zero", "constant", "sorted", "hidden from the sample", "heavy"],
)
@pytest.mark.parametrize("k", [1, 40, 5_000, 90_000, 99_999])
def test_large_tensors(kind: str, k: int) -> None:
    x = _large(kind, 100_000)
    expected = _by_sorting(x, k)
    assert torch.equal(largest_signs(x, k), expected)
    assert torch.equal(_on_device(x, k), expected)


def test_all_entries() -> None:
    x = torch.tensor([0.0, -2.0, 3.0])
    assert torch.equal(largest_signs(x, 3), torch.tensor([0.0, -1.0, 1.0]))
    assert torch.equal(largest_signs(x, 9), torch.tensor([0.0, -1.0, 1.0]))


def test_memory_of_the_caller_is_used() -> None:
    x, memory = torch.randn(30), torch.full((30,), 9.0)
    found = largest_signs(x, 4, memory)
    assert found.data_ptr() == memory.data_ptr()
    assert torch.equal(found, _by_sorting(x, 4))


def test_layouts() -> None:
    x = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(2))
    expected = _by_sorting(x, 20)
    for layout in (x.to(memory_format=torch.channels_last), x.transpose(0, 1).contiguous().mT.mT):
        view = layout if layout.shape == x.shape else layout.transpose(0, 1)
        assert torch.equal(largest_signs(view, 20), expected)
    assert torch.equal(largest_signs(torch.ones(1).expand(5), 2), torch.tensor([1.0, 1, 0, 0, 0]))


def test_half_precision_goes_the_general_way() -> None:
    x = torch.tensor([1.0, -3.0, 2.0, 2.0]).bfloat16()
    assert torch.equal(largest_signs(x, 2), torch.tensor([0.0, -1.0, 1.0, 0.0]).bfloat16())
