"""Adam's direction: the fused kernel against foreach operations and the definition."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from methods._oto import directions
from methods._oto.directions import Adam, has_fused_adam
from methods.dhspg import DHSPG, DHSPGConfig
from pipeline.units import scratch
from pipeline.units.rows import Rows
from tests.methods.oto.oto_traces import direction, plain_group

ADAM = direction("adam", 0.1)
CONFIG = DHSPGConfig()
BETAS = (0.9, 0.999)
SHAPES = ((8, 4, 3, 3), (8,), (5, 7), (1,))


def _tensors(seed: int, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    return [t.to(memory_format=layout) if t.ndim == 4 else t for t in made]


def _run(
    faithful: bool, decay: float, fuse: bool, params: list[Tensor], steps: int = 3
) -> tuple[list[Tensor], dict[Any, dict[str, Any]]]:
    adam, state = Adam(BETAS, faithful), defaultdict[Any, dict[str, Any]](dict)
    adam._can_fuse = fuse
    found: list[Tensor] = []
    for step in range(1, steps + 1):
        found = adam(state, params, _tensors(step), step, decay)
    return [v.clone() for v in found], state


@pytest.fixture(params=["whole", "in pieces"])
def _piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in pieces":
        monkeypatch.setattr(directions, "PIECE", 10)
        monkeypatch.setattr(directions, "SMALL", 4)


@pytest.mark.usefixtures("_piece")
@pytest.mark.skipif(not has_fused_adam(), reason="this torch has no fused Adam for a CPU")
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_kernel_and_list_operations_agree(
    decay: float, faithful: bool, layout: torch.memory_format
) -> None:
    """Also if the gradient (contiguous here) has another memory layout than the parameter."""
    one, kept = _run(faithful, decay, True, _tensors(0, layout))
    other, listed = _run(faithful, decay, False, _tensors(0, layout))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    for a, b in zip(kept.values(), listed.values(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(a[key], b[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("faithful", [False, True])
def test_the_first_step_is_the_sign_of_the_gradient(fuse: bool, faithful: bool) -> None:
    """With bias correction; the original's moments make it 0.316 of that."""
    (found, *_), _ = _run(faithful, 0.0, fuse and has_fused_adam(), _tensors(0), steps=1)
    size = math.sqrt(0.001) / 0.1 if faithful else 1.0
    torch.testing.assert_close(found, size * _tensors(1)[0].sign(), rtol=1e-4, atol=0)


def test_moments_from_a_file_go_on_with_the_same_bits() -> None:
    """The memory layout determines how the kernel vectorises, and so the last bits."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, 5, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    grads = [torch.randn(8, 5, 3, 3, generator=generator) for _ in range(6)]

    def run(stop: int) -> Tensor:
        p = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
        rows = Rows({"w": p}, [plain_group("g", 8, ("w",))])
        optimizer = DHSPG([p], rows, ADAM, CONFIG)
        optimizer.schedule(100, 0)
        for k, grad in enumerate(grads):
            if k == stop:
                saved = copy.deepcopy(optimizer.state_dict())
                for own in saved["state"].values():
                    own.update({n: t.contiguous() for n, t in own.items()})
                optimizer = DHSPG([p], rows, ADAM, CONFIG)
                optimizer.load_state_dict(saved)
            p.grad = torch.empty_like(p).copy_(grad)
            optimizer.step()
        return p.detach()

    assert torch.equal(run(3), run(-1))


def test_numbers_that_are_not_finite_do_not_outlive_a_loaded_state() -> None:
    p = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = DHSPG([p], Rows({"w": p}, [plain_group("g", 4, ("w",))]), ADAM, CONFIG)
    optimizer.schedule(100, 0)
    good = copy.deepcopy(optimizer.state_dict())
    for grad in (math.nan, 1.0):
        p.grad = torch.full_like(p, grad)
        optimizer.step()
        if math.isnan(grad):
            assert p.isnan().all()
            optimizer.load_state_dict(good)
            with torch.no_grad():
                p.fill_(1.0)
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.9))


@pytest.mark.parametrize("broken", [None, lambda *_, **__: None])
def test_a_torch_without_the_kernel_is_noticed(
    broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken is None:
        monkeypatch.delattr(torch, "_fused_adamw_", raising=False)
    else:
        monkeypatch.setattr(torch, "_fused_adamw_", broken)
    has_fused_adam.cache_clear()
    try:
        assert not has_fused_adam()
        assert not Adam(BETAS)._can_fuse
    finally:
        has_fused_adam.cache_clear()


def test_memory_is_lent_with_the_layout_asked_for() -> None:
    lender, kept = scratch.Scratch(), scratch.KeyedScratch()
    for x in _tensors(0, torch.channels_last):
        room = lender.like(x)
        assert (room.shape, room.stride(), room.dtype) == (x.shape, x.stride(), x.dtype)
        assert kept.like(1, x).stride() == x.stride()
        assert kept.like(1, x) is kept.like(1, x)
    large, small = torch.empty(9), torch.empty(3)
    assert lender.like(large).data_ptr() == lender.like(small).data_ptr()
